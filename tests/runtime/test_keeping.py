"""After adoption: a graft earns its keep, or is blended out, and the host comes back to where it was."""

import itertools
from typing import Any

import pytest
import torch

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import LIVE, OUTCOMES, State
from esper.kasmina.host.wrapping import host_state_dict
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

RAMP = 6
"""Steps of a ramp in runs of 120 steps."""


def adopted(config: esper.GrowthConfig | None = None, **recipe: Any) -> Trial:
    """A run at the first boundary with a live graft, at step 50 of 120."""
    trial = Recipe(config or growing(), **recipe).build()
    return trial.train_until(lambda trial: trial.session.epoch == 5)


def make_useless(trial: Trial) -> None:
    """From now on every ablation finds that nothing is lost."""
    trial.run.evaluations.ablated = lambda one: trial.run.evaluations.measure()


def outcomes(trial: Trial) -> list[tuple[str, str]]:
    return [(report.outcome, report.reason) for report in trial.session.field_reports]


def host_alone(trial: Trial) -> torch.nn.Module:
    bare = toy.host()
    bare.load_state_dict(host_state_dict(trial.model))
    return bare


class TestAUselessGraft:
    CONFIG = growing(keep_looks=(0.5,), embargo_epochs=2)

    def culled(self) -> Trial:
        trial = adopted(self.CONFIG)
        make_useless(trial)
        trial.train(1)
        assert trial.state() is State.CULLED
        return trial

    def test_is_blended_out_step_by_step_while_the_host_trains_on(self):
        trial = self.culled()
        graft = trial.live().clone()
        alphas = [float(trial.run.places[""].state.alpha)]
        hosts = [trial.model[0].weight.detach().clone()]
        for batch in list(toy.batches(6))[: RAMP - 1]:
            trial.session.step(batch)
            alphas.append(float(trial.run.places[""].state.alpha))
            hosts.append(trial.model[0].weight.detach().clone())
            assert torch.equal(trial.live(), graft)
        assert alphas == pytest.approx([1 - step / RAMP for step in range(RAMP)])
        assert all(not torch.equal(one, other) for one, other in itertools.pairwise(hosts))

    def test_leaves_the_identity_and_no_memory(self):
        trial = self.culled()
        for batch in list(toy.batches(6))[:RAMP]:
            trial.session.step(batch)
        arena = trial.run.places[""].arena
        assert [arena.slots.numel(), arena.exp_avg.numel(), arena.exp_avg_sq.numel(), arena.updates.numel()] == [0] * 4
        assert not arena.grafts
        assert not trial.run.places[""].is_growing
        x = toy.DATA.held_x
        assert torch.equal(trial.model(x), host_alone(trial)(x))
        assert outcomes(trial) == [("CULLED", "keep gate refused")]

    def test_lets_its_seed_sleep_again_after_the_embargo(self):
        trial = self.culled()
        states = [trial.state() for _ in range(3) if trial.train(1)]
        assert states == [State.CULLED, State.DORMANT, State.DORMANT]

    def test_that_is_worth_nothing_on_the_confirm_samples_is_refused_too(self, monkeypatch):
        monkeypatch.setattr("esper.runtime.watching.keeping.confirm_level", lambda judged: 0.0)
        trial = adopted(growing(keep_looks=(0.5, 0.9))).train(1)
        (look,) = trial.events("keep_look")
        assert look["ablation_z"] > 2.33
        assert not look["passed"]
        assert trial.state() is State.CULLED  # at once: confirm samples are looked at only once


def test_a_graft_is_looked_at_when_configured_until_it_passes():
    trial = adopted(growing(keep_looks=(0.5, 0.65, 0.8)))
    ablated = trial.run.evaluations.ablated
    make_useless(trial)
    trial.train(3)
    trial.run.evaluations.ablated = ablated
    trial.train()
    looks = trial.events("keep_look")
    assert [(look["step"], look["look"], look["passed"]) for look in looks] == [
        (60, 1, False),
        (80, 2, False),
        (100, 3, True),
    ]
    trial.session.finish()
    assert outcomes(trial) == [("FOSSILIZED", "gate passed")]


def test_an_ablation_leaves_the_run_as_it_was():
    trial = adopted()
    before = trial.digest()
    (one,) = trial.run.in_state(State.FINE_TUNING)
    without = trial.run.evaluations.ablated(one)
    assert trial.digest() == before
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            host_alone(trial).eval()(toy.DATA.held_x), toy.DATA.held_y, reduction="none"
        )
    assert torch.equal(without.losses, expected.double())


class TestFreezing:
    def test_at_once_makes_a_fossil_at_the_keep_gate(self):
        trial = adopted(growing(keep_looks=(0.5,), freeze="at_once")).train(1)
        assert outcomes(trial) == [("FOSSILIZED", "gate passed")]
        assert trial.state() is State.DORMANT

    def test_waits_by_default_until_the_learning_rate_has_decayed(self):
        trial = adopted(growing(keep_looks=(0.5,)))
        states = {}
        while trial.session.epoch < trial.epochs:
            trial.train(1)
            states[trial.session.step_count] = bool(trial.session.field_reports)
        (decayed,) = [step for step in states if states[step] and not states[step - 10]]
        rates = {event["step"]: event["lr"] for event in trial.events("epoch")}
        assert rates[decayed] < 0.1 * 0.03 <= rates[decayed - 10]

    def test_waits_for_95_percent_of_the_steps_where_the_rate_never_decays(self):
        trial = adopted(growing(keep_looks=(0.5,)), scheduler=None)
        trial.train(6)
        assert trial.state() is State.FINE_TUNING
        trial.train(1)
        assert outcomes(trial) == [("FOSSILIZED", "gate passed")]

    def test_changes_no_output_and_keeps_the_bytes_from_then_on(self):
        trial = adopted(growing(keep_looks=(0.5,), freeze="at_once"))
        seen = []
        freeze = trial.keeping.freeze

        def note_and_freeze():
            before = trial.model(toy.DATA.held_x), trial.live().clone()
            freeze()
            seen.append((before, trial.model(toy.DATA.held_x)))

        trial.keeping.freeze = note_and_freeze
        trial.train(1)
        trial.keeping.freeze = freeze
        ((before, graft), after) = seen[0]
        assert torch.equal(before, after)
        trial.train()
        assert torch.equal(trial.run.places[""].arena.fossil_bytes(0)[0], graft)

    def test_waits_until_every_live_graft_is_decided(self):
        """A fossil is for good, so the run could not go back to before a graft that is removed later."""
        trial = two_grafts(growing(layers=["", "2"], round_fraction=0.2, keep_looks=(0.98,), freeze="at_once"))
        first, second = trial.run.books.alive.values()
        for one in (first, second):
            trial.keeping.look(one, trial.run.evaluations.measure(), is_last=False)
        second.is_kept = False
        trial.keeping.freeze()
        assert first.state is State.FINE_TUNING
        second.is_kept = True
        trial.keeping.freeze()
        assert outcomes(trial) == [("FOSSILIZED", "gate passed")] * 2


def two_grafts(config: esper.GrowthConfig, epochs: int = 24) -> Trial:
    """A run with two live grafts, the second adopted while the first was live."""
    trial = Recipe(config, epochs=epochs, policy=Script({1: [""], 7: ["2"]}, hidden=4)).build()
    trial.train_until(lambda trial: len(trial.events("round_ended")) == 2 and trial.session.step_count % 10 == 0)
    trial.session.after_epoch()
    assert [one.state for one in trial.run.books.alive.values()] == [State.FINE_TUNING] * 2
    return trial


class TestRecovery:
    """A run that removed a graft must come back to the held-out loss it had before, or goes back there."""

    CONFIG = growing(
        layers=["", "2"],
        round_fraction=0.2,
        keep_looks=(0.98,),
        patience_after_cull=2,
        embargo_epochs=4,
        quarantine_epochs=4,
    )

    @staticmethod
    def cull(trial: Trial, layer_id: str) -> None:
        assert trial.session.submit(Command(layer_id, "all", State.CULLED, "by hand")).accepted

    @staticmethod
    def promise(trial: Trial, select_loss: float, select_metric: float = 2.0) -> None:
        """Make believe that held-out loss and accuracy before every graft were these."""
        for fallback in trial.recovery.fallbacks:
            fallback |= {"select_loss": select_loss, "select_metric": select_metric}

    def test_that_recovered_goes_on(self):
        trial = adopted(self.CONFIG)
        self.promise(trial, 1e9)
        self.cull(trial, "")
        trial.train(2)
        (event,) = trial.events("recovery")
        assert event["recovered"]
        assert trial.recovery.fallbacks == []

    def test_that_did_not_goes_back_after_its_patience_and_keeps_its_rates_and_clock(self):
        trial = adopted(self.CONFIG)
        fallback = trial.recovery.fallbacks[0]["body"]["model"]
        self.promise(trial, 0.0)
        self.cull(trial, "")
        trial.train(1)
        assert trial.events("recovery") == []
        trial.train(1)
        (event,) = trial.events("recovery")
        assert (event["recovered"], event["step"]) == (False, 70)
        for name, value in host_state_dict(trial.model).items():
            assert torch.equal(value, fallback[name])
        assert trial.state() is State.CULLED
        assert trial.session.step_count == 70
        assert trial.optimizer.param_groups[0]["lr"] == trial.run.trainer.scheduler.get_last_lr()[0]
        trial.train()
        trial.session.finish()
        assert outcomes(trial) == [("CULLED", "by hand")]

    @pytest.mark.parametrize(
        ("settled", "accuracy_before", "recovers"),
        [(1e9, 0.0, True), (1e9, 2.0, False), (0.0, 0.0, False), (None, 0.0, False), (1e9, None, False)],
    )
    def test_that_is_as_accurate_need_only_be_what_it_was_before_the_removal(self, settled, accuracy_before, recovers):
        """As where a host overfits: its loss rises and its accuracy does, whatever becomes of the graft."""
        trial = adopted(self.CONFIG)
        self.promise(trial, 0.0, accuracy_before)
        self.cull(trial, "")
        trial.keeping.settled_loss = settled
        trial.train(2)
        assert [event["recovered"] for event in trial.events("recovery")] == [recovers]

    def test_knows_the_loss_before_the_removal(self):
        trial = adopted(self.CONFIG).train(1)
        before = trial.run.books.select_losses[-1]
        assert trial.keeping.settled_loss == before
        self.cull(trial, "")
        trial.train(1)
        assert trial.run.books.select_losses[-1] != before == trial.keeping.settled_loss

    def test_of_the_first_of_two_grafts_takes_the_second_along(self):
        """The second was trained on top of the first."""
        trial = two_grafts(self.CONFIG)
        before_both = trial.recovery.fallbacks[0]["body"]["model"]
        self.promise(trial, 0.0)
        self.cull(trial, "")
        trial.train_until(lambda trial: bool(trial.events("recovery")))
        for name, value in host_state_dict(trial.model).items():
            assert torch.equal(value, before_both[name])
        assert outcomes(trial) == [("CULLED", "by hand"), ("ROLLED_BACK", "the run went back to before this graft")]
        assert all(not place.arena.grafts and not place.arena.num_slots for place in trial.run.places.values())
        assert trial.state("2") is State.ROLLED_BACK
        assert [trial.state("2") for _ in range(5) if trial.train(1)][-1] is State.DORMANT
        trial.session.finish()

    def test_of_the_second_of_two_grafts_leaves_the_first(self):
        trial = two_grafts(self.CONFIG)
        before_second = trial.recovery.fallbacks[1]["body"]["model"]
        self.promise(trial, 0.0)
        self.cull(trial, "2")
        trial.train_until(lambda trial: bool(trial.events("recovery")))
        for name, value in trial.run.snapshots.body()["model"].items():
            if ".state." not in name and ".telemetry." not in name:
                assert torch.equal(value, before_second[name]), name
        assert (trial.state(), trial.state("2")) == (State.FINE_TUNING, State.CULLED)
        assert [fallback["live"] for fallback in trial.recovery.fallbacks] == [[]]
        trial.train()
        trial.session.finish()
        assert [outcome for outcome, _ in outcomes(trial)] == ["CULLED", "FOSSILIZED"]

    def test_of_the_first_graft_makes_the_state_before_it_the_one_to_go_back_to(self):
        trial = two_grafts(self.CONFIG)
        before_both = trial.recovery.fallbacks[0]["body"]["model"]
        self.promise(trial, 1e9)
        self.cull(trial, "")
        trial.train_until(lambda trial: bool(trial.events("recovery")))
        assert [fallback["live"] for fallback in trial.recovery.fallbacks] == [[]]
        self.promise(trial, 0.0)
        self.cull(trial, "2")
        trial.train_until(lambda trial: len(trial.events("recovery")) == 2)
        for name, value in host_state_dict(trial.model).items():
            assert torch.equal(value, before_both[name])

    def test_is_not_awaited_where_nothing_was_adopted(self):
        trial = Recipe(growing(gate_z=1e9)).build().train()
        assert trial.events("recovery") == []


def test_a_live_graft_that_is_cancelled_is_blended_out_and_its_seed_free_at_the_next_boundary():
    trial = adopted()
    assert trial.session.submit(Command("", "all", State.CANCELLED, "enough")).accepted
    alphas = []
    for batch in list(toy.batches(5)):
        trial.session.step(batch)
        alphas.append(float(trial.run.places[""].state.alpha))
    assert alphas[: RAMP + 1] == pytest.approx([*(1 - step / RAMP for step in range(1, RAMP + 1)), 0.0], abs=1e-6)
    trial.session.after_epoch()
    assert outcomes(trial) == [("CANCELLED", "enough")]
    assert trial.state() is State.DORMANT


def test_a_seed_that_waits_too_long_is_culled():
    trial = Recipe(growing(layers=["", "2"], timeout=0.05)).build()
    trial.train_until(lambda trial: trial.session.step_count == 33)
    assert trial.session.submit(Script({}).command("2")).accepted  # in a window, so it has to wait for the next round
    trial.train_until(lambda trial: trial.session.step_count % 10 == 0 and trial.session.step_count >= 50)
    trial.session.after_epoch()
    assert ("CULLED", "timed_out") in outcomes(trial)
    assert trial.state("2") is State.CULLED


def test_batches_are_kept_for_a_blend_out_only_as_long_as_one():
    trial = adopted(growing(ramp_fraction=0.001))
    trial.train(2)
    assert trial.run.ramp_steps == 1
    assert len(trial.run.recent) == 1
    trial = adopted()
    trial.train(1)
    assert len(trial.run.recent) == RAMP


def test_no_batch_is_kept_when_nothing_is_left_to_blend_out():
    trial = adopted()
    trial.session.cancel("", "all")
    trial.train(1)
    assert not trial.run.books.alive
    assert list(trial.run.recent) == []


def test_one_state_to_fall_back_to_is_kept_for_the_same_live_grafts():
    """However many grafts come and go beside one that stays."""
    config = growing(layers=["", "0"], gate_z=1e-4, ramp_fraction=0.01, round_fraction=0.02, keep_looks=(0.95,))
    trial = Recipe(config, policy=Script({}), epochs=40).build().train(1)
    trial.session.germinate("", "all", settings={"hidden": 8})
    trial.train(5)
    assert trial.state() is State.FINE_TUNING
    for _ in range(3):
        trial.session.germinate("0", "all", settings={"hidden": 2})
        trial.train(1)
        assert trial.state("0") is State.GRAFTING
        trial.session.step(next(toy.batches(99)))
        assert trial.session.cancel("0", "all").accepted
        trial.train(4)
    assert [report.layer_id for report in trial.session.field_reports] == ["0"] * 3
    assert len(trial.events("recovery")) == 3
    assert [len(fallback["live"]) for fallback in trial.recovery.fallbacks] == [0, 1]


def at_step(step: int, config: esper.GrowthConfig | None = None) -> Trial:
    recipe = Recipe(config or growing(layers=["", "2"], keep_looks=(0.9,)), policy=Script({1: ["", "2"]}))
    trial = recipe.build()
    return trial.train_until(lambda trial: trial.session.step_count == step)


def culled_at(step: int) -> Trial:
    trial = at_step(step)
    (one,) = trial.run.in_state(State.FINE_TUNING)
    assert trial.session.submit(Command(one.layer_id, "all", State.CULLED, "by hand")).accepted
    trial.session.step(next(toy.batches(0)))
    return trial


def not_recovered() -> Trial:
    trial = culled_at(54)
    for fallback in trial.recovery.fallbacks:
        fallback |= {"select_loss": 0.0, "select_metric": 2.0}
    return trial


def broken() -> Trial:
    trial = at_step(54)
    (place,) = [place for place in trial.run.places.values() if place.arena.live]
    with torch.no_grad():
        place.arena.slots.fill_(float("nan"))
    return trial


FINISHES = {
    "before anything": lambda: at_step(3),
    "in a window": lambda: at_step(17),
    "after adoption, before any look": lambda: at_step(54),
    "in a blend-out": lambda: culled_at(54),
    "when the host has not recovered": not_recovered,
    "with a faulty graft": broken,
    "two live grafts": lambda: two_grafts(growing(layers=["", "2"], round_fraction=0.2, keep_looks=(0.95,))),
    "after all candidates were refused": lambda: at_step(54, growing(layers=["", "2"], gate_z=1e9)),
    "at the planned end": lambda: at_step(120),
}


@pytest.mark.parametrize(
    "point",
    few(
        FINISHES,
        ["in a window", "in a blend-out", "when the host has not recovered", "with a faulty graft", "two live grafts"],
    ),
)
def test_finish_decides_every_lifecycle_and_leaves_every_seed_dormant(point):
    trial = FINISHES[point]()
    begun = trial.run.books.lifecycles_begun
    trial.session.finish()
    names = {state.name for state in OUTCOMES}
    assert len(outcomes(trial)) == begun
    assert {outcome for outcome, _ in outcomes(trial)} <= names
    assert not trial.run.books.alive
    for place in trial.run.places.values():
        assert set(place.state.lifecycle.tolist()) == {int(State.DORMANT)}
        assert not place.arena.grafts
        assert place.arena.slots.numel() == 0
    plain = esper.export(trial.model.eval())
    assert torch.equal(plain(toy.DATA.held_x), trial.model(toy.DATA.held_x))
    assert torch.isfinite(trial.model(toy.DATA.held_x)).all()


def test_finish_blends_out_on_further_batches_and_books_them():
    trial = culled_at(54)
    flops, alphas = trial.run.books.run_flops, []
    advance = trial.run.advance

    def advance_and_note(loss: Any) -> None:
        advance(loss)
        alphas.append(max(float(place.state.alpha.max()) for place in trial.run.places.values()))

    trial.run.advance = advance_and_note
    trial.session.finish()
    assert alphas == pytest.approx([1 - step / RAMP for step in range(2, RAMP + 1)], abs=1e-6)
    assert trial.session.step_count == 55 + RAMP - 1
    assert trial.run.books.run_flops > flops


def test_a_resumed_session_blends_out_at_its_finish_as_the_first_would_have(tmp_path):
    trial = culled_at(54)
    trial.session.save(tmp_path)
    trial.session.finish()
    resumed = Recipe(growing(layers=["", "2"], keep_looks=(0.9,)), policy=Script({1: ["", "2"]})).build()
    resumed.session.load(tmp_path)
    resumed.session.finish()
    assert resumed.session.step_count == 55 + RAMP - 1
    assert resumed.digest() == trial.digest()


def test_finish_goes_back_if_the_host_does_not_recover():
    trial = not_recovered()
    fallback = trial.recovery.fallbacks[0]["body"]["model"]
    trial.session.finish()
    assert trial.events("recovery")[0]["recovered"] is False
    for name, value in host_state_dict(trial.model).items():
        assert torch.equal(value, fallback[name])


def test_no_state_but_dormant_lasts():
    """Whatever the seeds of a run go through, at its end none of them is under way."""
    trial = Recipe(growing(layers=["", "2", "0"]), policy=Script({1: ["", "0"], 4: ["2"], 6: ["0"], 9: ["2"]})).build()
    trial.train()
    trial.session.finish()
    assert not trial.run.in_state(*LIVE, State.GERMINATED, State.TRAINING)
