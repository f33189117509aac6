"""Arms take the steps of a window again with the modules as they were then, or the round is given up."""

import random

import pytest
import torch
from torch import nn

from esper.runtime.state.module_state import ModuleHistory, module_facts, set_module_facts
from tests.few import few
from tests.runtime import replaying, toy
from tests.runtime.replaying import gains, reasons, trained

FIRST, LAST = 20, 60


class Annealed(nn.Module):
    """Counts its training passes in a plain number, and cools down by it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.passes = nn.Linear(toy.FEATURES, 4), nn.Linear(4, toy.CLASSES), 0

    def forward(self, x):
        self.passes += self.training
        return self.last(torch.relu(self.first(x)) * (1 + 1 / (1 + self.passes)))


CHANGES = {
    "nothing": lambda model, step: None,
    "a layer is unfrozen": lambda model, step: model[0].weight.requires_grad_(step >= 40),
    "batch norm is frozen": lambda model, step: model[1].train(step < 40),
    "dropout rises": lambda model, step: setattr(model[3], "p", min(0.5, step / 120)),
    "batch norm moves faster": lambda model, step: setattr(model[1], "momentum", 0.1 if step < 30 else 0.01),
    "at the first step of the window": lambda model, step: setattr(model[3], "p", 0.1 if step < FIRST else 0.3),
    "behind the window": lambda model, step: setattr(model[3], "p", 0.1 if step < LAST else 0.3),
}


@pytest.mark.parametrize("name", few(CHANGES, ["nothing", "batch norm is frozen", "behind the window"]))
def test_a_graft_that_computes_nothing_gains_nothing_whatever_the_loop_changes(name):
    trial = trained(change=lambda trial, step: CHANGES[name](trial.model, step))
    assert gains(trial) == [0.0]
    ours, theirs = replaying.weights(trial), replaying.plain(CHANGES[name], toy.loss)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_module_that_counts_its_passes_counts_those_of_the_run_alone():
    recipe = toy.Recipe(
        toy.growing(layers=["first"], gate_z=1e9), model=Annealed, policy=toy.Script({1: ["first"]}), scheduler=None
    )
    trial = recipe.build().train(8)
    assert len(trial.events("arm_ended")) == 1
    assert trial.model.passes == trial.session.step_count
    bare = Annealed()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.03)
    for epoch in range(8):
        for batch in toy.batches(epoch):
            optimizer.zero_grad()
            toy.loss(bare, batch).backward()
            optimizer.step()
    assert all(torch.equal(replaying.weights(trial)[key], tensor) for key, tensor in bare.state_dict().items())


class Hidden:
    """A loss with a state that nothing can know of: noise from a stream of its own."""

    def __init__(self) -> None:
        self.stream = random.Random(0)

    def __call__(self, model, batch):
        return toy.loss(model, batch) * (1 + 0.1 * self.stream.random())


class Known(Hidden):
    """The same from the global stream."""

    def __init__(self) -> None:
        random.seed(0)
        self.stream = random


@pytest.mark.parametrize("trial", ["round", "live"])
def test_hidden_state_is_noticed_and_nothing_is_compared(trial):
    made = trained(loss=Hidden(), trial=trial)
    (reason,) = reasons(made)
    assert reason.startswith("a step that was taken once more had the loss ")
    assert "Put it into scheduler, scaler or extra" in reason
    assert not gains(made)
    assert made.session.field_reports[0].outcome in ("CANCELLED", "CULLED")


@pytest.mark.parametrize("trial", ["round", "live"])
def test_state_that_is_known_is_not_mistaken_for_it(trial):
    """The control."""
    made = trained(loss=Known(), trial=trial)
    assert not [reason for reason in reasons(made) if "taken once more" in reason]
    assert len(made.events("arm_ended" if trial == "round" else "trial_ended")) == 1


@pytest.mark.parametrize(("begins", "arms"), [(0, 0), (55, 2)])
def test_beside_a_live_graft_what_rounding_can_do_is_let_pass(begins, arms):
    """A candidate that joins it is computed in one batch with it. Where nothing has grown it is noticed."""
    noise, trial = random.Random(0), []

    def loss(model, batch):
        began = bool(trial) and trial[0].session.step_count >= begins
        return toy.loss(model, batch) * (1 + 1e-5 * noise.random() * began)

    config = toy.growing(layers={"0": 2}, round_fraction=0.2, gate_z=1e-4, keep_looks=(0.95,))
    trial.append(toy.Recipe(config, policy=toy.Script({1: [("0", 0)], 6: [("0", 1)]})).build(loss=loss))
    trial[0].train(9)
    assert len(trial[0].events("arm_ended")) == arms


def test_it_is_noticed_at_the_first_step_of_the_first_arm():
    loss, calls = Hidden(), []

    def counting(model, batch):
        calls.append(batch)
        return loss(model, batch)

    trial = trained(loss=counting, model=toy.host)
    again = 1  # in the dry run, since the loss with grafts that add nothing is another
    assert len(calls) == toy.DRY_RUN + again + trial.session.step_count + 1


class TestFacts:
    def test_come_back_whatever_was_changed(self):
        model = replaying.host()
        before = module_facts(model)
        model[0].weight.requires_grad_(False)
        model[1].eval()
        model[3].p, model[3].note = 0.7, "new"
        del model[1].momentum
        assert module_facts(model) != before
        set_module_facts(model, before)
        assert module_facts(model) == before
        assert not hasattr(model[3], "note")

    def test_what_has_become_more_than_plain_is_left_alone(self):
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].scale = 1.0
        before = module_facts(model)
        model[0].scale = table = torch.ones(2)
        set_module_facts(model, before)
        assert model[0].scale is table

    def test_leave_out_espers_own(self):
        trial = trained(epochs=1)
        assert module_facts(trial.model).keys() == {"", "0", "1", "2", "3", "4"}

    def test_a_history_gives_every_step_its_own(self):
        model, history, seen = replaying.host(), ModuleHistory(), []
        for step in range(6):
            model[3].p = step // 2 / 10
            history.remember(module_facts(model))
            seen.append(module_facts(model))
        again = ModuleHistory(history.changes)
        for one in (history, again):
            for step in (0, 1, 5, 2, 3, 4, 0):
                assert one.before(step) == seen[step]
        assert [len(changes) for changes in history.changes] == [6, 0, 1, 0, 1, 0]
