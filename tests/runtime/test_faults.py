"""A graft that becomes non-finite ends alone: the host stays finite, and the seed is acted on a step later."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import host_state_dict
from esper.runtime.training.late import Late
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest

VALUES = pytest.mark.parametrize("value", few([math.nan, math.inf, -math.inf], [math.nan]))
CLIPPED = pytest.mark.parametrize(
    ("value", "clip"),
    few(
        [(value, clip) for value in (math.nan, math.inf, -math.inf) for clip in (None, 0.5)],
        [(math.nan, None), (-math.inf, 0.5)],
    ),
)


def live_run(**session: Any) -> Trial:
    """A run with a live graft, at the boundary after step 50."""
    recipe = Recipe(growing(keep_looks=(0.9,)), model=lambda: toy.host(dropout=0.2))
    return recipe.build(**session).train_until(lambda trial: trial.session.epoch == 5)


def poison(trial: Trial, value: float = math.nan, layer_id: str = "") -> None:
    """Write a value into the weights of a place's live grafts, behind everybody's back."""
    with torch.no_grad():
        trial.run.places[layer_id].arena.slots[1] = value


def is_finite(model: nn.Module) -> bool:
    tensors = itertools.chain(
        host_state_dict(model).values(), (p.grad for p in model.parameters() if p.grad is not None)
    )
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def step(trial: Trial, count: int = 1) -> None:
    for batch in itertools.islice(toy.batches(7), count):
        trial.session.step(batch)


@CLIPPED
def test_a_flag_raised_in_one_step_is_acted_on_at_the_end_of_the_next(value, clip):
    trial = live_run(clip_grad_norm=clip)
    poison(trial, value)
    step(trial)
    assert trial.state() is State.FINE_TUNING
    step(trial)
    assert trial.state() is State.CULLED
    assert trial.run.places[""].arena.slots.numel() == 0
    (report,) = trial.session.field_reports
    assert (report.outcome, report.reason) == ("CULLED", "non-finite values")
    assert trial.events("fault")[0]["lifecycles"] == [1]
    assert is_finite(trial.model)


@CLIPPED
def test_the_host_trains_as_if_the_graft_were_not_there(value, clip):
    trial = live_run(clip_grad_norm=clip)
    here = trial.run.captures.capture()
    poison(trial, value)
    step(trial)
    faulty = tree_digest(dict(host_state_dict(trial.model)))
    trial.run.captures.restore(here)
    trial.run.places[""].state.alpha.zero_()
    trial.session.step(next(toy.batches(7)))
    assert tree_digest(dict(host_state_dict(trial.model))) == faulty
    trial.run.captures.restore(here)
    trial.session.step(next(toy.batches(7)))
    assert tree_digest(dict(host_state_dict(trial.model))) != faulty  # the control: the graft did count


def test_pending_flags_survive_save_and_load(tmp_path):
    trial = live_run()
    poison(trial)
    step(trial)
    trial.session.save(tmp_path)
    recipe = Recipe(growing(keep_looks=(0.9,)), model=lambda: toy.host(dropout=0.2))
    resumed = recipe.build()
    resumed.session.load(tmp_path)
    resumed.run.places[""].state.fault.zero_()  # the flag of the step before is what counts
    with torch.no_grad():
        resumed.run.places[""].arena.slots.fill_(0.1)
    step(resumed)
    assert resumed.state() is State.CULLED


def test_a_fault_while_a_graft_is_blended_out_takes_it_out_at_once():
    trial = live_run()
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    step(trial)
    poison(trial)
    step(trial, 2)
    assert trial.run.places[""].arena.slots.numel() == 0
    assert trial.session.field_reports[0].reason == "by hand"
    assert is_finite(trial.model)


def test_faults_of_two_grafts_of_a_layer_in_two_steps_are_both_acted_on_in_time():
    config = growing(layers={"2": 3}, round_fraction=0.2, keep_looks=(0.98,), gate_z=1e-3)
    recipe = Recipe(config, epochs=24, policy=Script({1: [("2", 0)], 8: [("2", 2)]}))
    trial = recipe.build().train_until(lambda trial: len(trial.events("round_ended")) == 2)
    arena, state = trial.run.places["2"].arena, trial.run.places["2"].state
    assert [State(code) for code in state.lifecycle.tolist()] == [State.FINE_TUNING, State.DORMANT, State.FINE_TUNING]
    with torch.no_grad():
        arena.slots_SN()[0].fill_(math.nan)
    step(trial)
    with torch.no_grad():
        arena.slots_SN()[1].fill_(math.nan)
    step(trial)
    assert [State(code) for code in state.lifecycle.tolist()] == [State.CULLED, State.DORMANT, State.FINE_TUNING]
    step(trial)
    assert [State(code) for code in state.lifecycle.tolist()] == [State.CULLED, State.DORMANT, State.CULLED]


@pytest.mark.parametrize("state", [State.GRAFTING, State.STABILIZATION])
@pytest.mark.parametrize("passes", [False, True])
@VALUES
def test_an_arm_with_a_faulty_graft_is_disqualified_and_the_run_untouched(state, passes, value):
    """The arm acts as the bare host meanwhile, so it could even win by luck; nor does it matter if the fault passes."""

    def loss(model, batch):
        if trial.run.arm is not None and trial.state() is state:
            struck.append(state)
            if len(struck) == 2:  # the first step of its kind may be made once more, to be counted
                poison(trial, value)
            if len(struck) == 3 and passes:
                poison(trial, 0.0)
        return toy.loss(model, batch)

    struck: list[State] = []
    trial = Recipe(growing(gate_z=1e-9, hold_fraction=0.1), model=lambda: toy.host(dropout=0.2)).build(loss=loss)
    trial.train()
    trial.session.finish()
    assert len(struck) > 1
    (arm,) = trial.events("arm_ended")
    assert not arm["passed"]
    (report,) = trial.session.field_reports
    assert (report.outcome, report.reason) == ("CULLED", "lost_round")
    bare = Recipe(growing(), model=lambda: toy.host(dropout=0.2), policy=Script({})).build().train()
    assert tree_digest(dict(host_state_dict(trial.model))) == tree_digest(dict(host_state_dict(bare.model)))


def test_a_fault_in_a_window_ends_the_round():
    recipe = Recipe(
        growing(layers=["", "2"], round_fraction=0.2, keep_looks=(0.9,)), policy=Script({1: [""], 5: ["2"]})
    )
    trial = recipe.build().train_until(lambda trial: len(trial.events("round_begun")) == 2)
    poison(trial)
    step(trial, 2)
    assert trial.rounds.current is None
    assert [(report.layer_id, report.outcome) for report in trial.session.field_reports] == [
        ("", "CULLED"),
        ("2", "CANCELLED"),
    ]


def test_a_seed_that_only_waits_is_never_blamed():
    """Flags are copied and read a step later; by then the seed may have another lifecycle."""
    trial = Recipe().build().train_until(lambda trial: trial.session.epoch == 2)
    assert trial.state() is State.GERMINATED
    trial.keeping.pending = {"": Late(torch.tensor([1], dtype=torch.int8))}
    step(trial)
    assert trial.state() is State.GERMINATED
    assert len(trial.run.in_state(State.GERMINATED)) == 1
    assert trial.session.field_reports == []


def test_a_faulty_fossil_is_told_and_acts_as_the_identity():
    trial = Recipe(growing(keep_looks=(0.5,), freeze="at_once")).build()
    trial.train_until(lambda trial: trial.session.epoch == 7)
    trial.run.places[""].arena.fossil_bytes(0)[0, 0] = math.nan
    step(trial, 2)
    assert trial.events("fault")[0]["lifecycles"] == []
    assert is_finite(trial.model)
    assert trial.session.field_reports[0].outcome == "FOSSILIZED"


def test_a_faulty_fossil_is_told_once():
    trial = Recipe(growing(keep_looks=(0.5,), freeze="at_once")).build()
    trial.train_until(lambda trial: trial.session.epoch == 7)
    trial.run.places[""].arena.fossil_bytes(0)[0, 0] = math.nan
    trial.train(2)
    assert len(trial.events("fault")) == 1


def test_a_non_finite_batch_is_no_grafts_fault():
    trial = live_run()
    x, y = next(toy.batches(7))
    x = x.clone()
    x[3, 1] = math.nan
    here = trial.run.captures.capture()
    trial.session.step((x, y))
    trial.run.captures.restore(here)  # the host was harmed, which is not what is asked here
    step(trial, 2)
    assert trial.events("fault") == []
    assert trial.state() is State.FINE_TUNING


def test_the_host_comes_back_if_the_fault_left_it_worse():
    trial = live_run()
    fallback = trial.recovery.fallbacks[0]["body"]["model"]
    trial.recovery.fallbacks[0] |= {"select_loss": 0.0, "select_metric": 2.0}
    poison(trial)
    trial.train_until(lambda trial: bool(trial.events("recovery")))
    for name, value in host_state_dict(trial.model).items():
        assert torch.equal(value, fallback[name])
