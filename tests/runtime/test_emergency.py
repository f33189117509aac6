"""A run that is harmed while grafts are live is brought back; one that is merely noisy is left alone."""

import math
from typing import Any

import pytest
import torch

import esper
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import host_state_dict
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


def config(**settings: Any) -> esper.GrowthConfig:
    return growing(
        **{"layers": ["", "2"], "round_fraction": 0.2, "keep_looks": (0.95,), "ramp_fraction": 0.02} | settings
    )


def alive(plan: dict[int, Any] | None = None, config_: esper.GrowthConfig | None = None, **session: Any) -> Trial:
    """A run with live grafts at a boundary, two epochs after the last adoption."""
    plan = {1: [""]} if plan is None else plan
    trial = Recipe(config_ or config(), epochs=24, policy=Script(plan, hidden=4)).build(**session)
    trial.train_until(
        lambda trial: len(trial.events("round_ended")) == len(plan) and trial.session.step_count % 10 == 0
    )
    trial.session.after_epoch()
    return trial.train(2)


def steps(trial: Trial, count: int) -> None:
    for batch in list(toy.batches(11))[:count]:
        trial.session.step(batch)


def blended_in() -> Trial:
    """A run in which a graft has just begun to be blended in, so that nothing leans on it yet."""
    trial = Recipe(config(), epochs=24, policy=Script({})).build().train(2)
    trial.session.germinate("", "all", settings={"hidden": 4})
    trial.train(1)
    steps(trial, 2)
    assert trial.state() is State.GRAFTING
    return trial


def stand_still(trial: Trial) -> Trial:
    """Let neither host nor grafts learn any further."""
    for group in trial.optimizer.param_groups:
        group["lr"] = 0.0
    trial.run.trainer.scheduler = None
    for one in trial.run.trainer._slot_optimizers:
        one._learning_rate = lambda: 0.0
    return trial


def blow_up(trial: Trial, layer_id: str = "", factor: float = 1e4) -> None:
    """Make the output of a place's live graft huge, and finite."""
    with torch.no_grad():
        trial.run.places[layer_id].arena.slots.mul_(factor)


def wreck(trial: Trial, value: float) -> None:
    """Harm the host itself."""
    with torch.no_grad():
        trial.model[0].weight.fill_(value)


def outcomes(trial: Trial) -> list[tuple[str, str]]:
    return [(report.layer_id, report.outcome) for report in trial.session.field_reports]


class TestAGraftThatIsAtFault:
    def test_ends_alone_when_the_losses_spike(self):
        trial = stand_still(blended_in())
        host = {name: value.clone() for name, value in host_state_dict(trial.model).items()}
        blow_up(trial)
        steps(trial, 3)
        assert trial.state() is State.GRAFTING
        steps(trial, 1)
        (emergency,) = trial.events("emergency")
        assert (emergency["response"], emergency["layer_id"]) == ("cull", "")
        assert "3 training losses in a row spiked" in emergency["reason"]
        assert trial.state() is State.CULLED
        assert not trial.run.places[""].is_growing
        for name, value in host_state_dict(trial.model).items():
            assert torch.equal(value, host[name])
        assert outcomes(trial) == [("", "CULLED")]
        assert trial.events("rollback") == []

    def test_ends_alone_beside_another_that_stays(self):
        trial = alive()
        trial.session.germinate("2", "all", settings={"hidden": 4})
        trial.train(1)
        steps(trial, 2)
        blow_up(trial, "2")
        trial.session.after_epoch()
        assert (trial.state(""), trial.state("2")) == (State.FINE_TUNING, State.CULLED)
        (emergency,) = trial.events("emergency")
        assert (emergency["response"], emergency["layer_id"]) == ("cull", "2")

    def test_does_not_end_for_a_spike_of_the_data(self):
        """Losses spike, but held-out loss does not: the control of the first test."""
        trial, suspected = stand_still(alive()), []
        suspect = trial.growth.emergency.suspect
        trial.growth.emergency.suspect = lambda sign: (suspected.append(sign), suspect(sign))
        x, _ = next(toy.batches(11))
        with torch.no_grad():
            wrong = trial.model(x).argmin(dim=1)
        for _ in range(6):
            trial.session.step((100 * x, wrong))
        assert suspected
        assert trial.events("emergency") == []
        assert trial.state() is State.FINE_TUNING

    def test_that_the_host_leans_on_comes_back_with_the_run_as_it_was(self):
        """Without it the held-out loss would be worse, so the run goes back to where both were well."""
        trial = alive()
        graft = trial.recovery.good[-1]
        blow_up(trial)
        trial.session.after_epoch()
        assert trial.events("emergency")[0]["response"] == "rollback"
        assert trial.state() is State.FINE_TUNING
        assert trial.run.judge.measure().loss(trial.run.judge.split.select) == graft["select_loss"]

    def test_that_harms_the_run_again_and_again_is_not_gone_back_to_for_ever(self):
        trial = alive()
        for _ in range(6):
            if trial.run.places[""].is_growing:
                blow_up(trial)
                trial.session.after_epoch()
        assert not trial.run.places[""].is_growing
        assert outcomes(trial) == [("", "CULLED")]  # next to the run from before it, it alone is at fault
        assert [event["to_step"] for event in trial.events("rollback")] == [80, 80, 70, 70]


class TestAHostThatIsHarmed:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_goes_back_when_it_is_not_finite_at_a_boundary(self, value):
        trial = alive()
        good = trial.recovery.good[-1]["body"]["model"]
        wreck(trial, value)
        trial.session.after_epoch()
        (emergency,) = trial.events("emergency")
        assert emergency["response"] == "rollback"
        assert trial.events("rollback")[0]["who"] == "session"
        for name, host in host_state_dict(trial.model).items():
            assert torch.equal(host, good[name])
        assert trial.state() is State.FINE_TUNING  # it was live in the good state

    def test_goes_back_when_losses_are_not_finite_in_a_row(self):
        trial = alive()
        wreck(trial, math.nan)
        steps(trial, 3)
        assert trial.events("rollback") == []
        steps(trial, 1)
        (told,) = trial.events("rollback")
        assert "3 training losses in a row were not finite" in told["reason"]
        assert trial.run.host_is_finite

    def test_goes_back_also_without_a_graft(self):
        trial = Recipe(config(), policy=Script({})).build().train(3)
        wreck(trial, math.nan)
        steps(trial, 4)
        assert len(trial.events("rollback")) == 1
        assert trial.run.host_is_finite

    def test_is_left_alone_where_nothing_can_grow(self):
        trial = Recipe(config(max_rounds=0), policy=Script({})).build().train(3)
        wreck(trial, math.nan)
        steps(trial, 4)
        trial.session.after_epoch()
        assert trial.events("emergency") == trial.events("rollback") == []
        assert not trial.run.host_is_finite

    def test_goes_back_when_the_held_out_loss_rose_and_no_graft_alone_is_at_fault(self):
        trial = alive()
        good = trial.recovery.good[-1]["body"]["model"]
        wreck(trial, 5.0)
        trial.session.after_epoch()
        (emergency,) = trial.events("emergency")
        assert emergency["reason"] == "the held-out loss rose"
        assert emergency["response"] == "rollback"
        for name, host in host_state_dict(trial.model).items():
            assert torch.equal(host, good[name])

    @pytest.mark.parametrize("settings", [{"emergency_rollback_threshold": 1e6}], ids=str)
    def test_stays_when_the_loss_rose_by_less_than_the_threshold(self, settings):
        trial = alive(config_=config(**settings))
        wreck(trial, 5.0)
        trial.session.after_epoch()
        assert trial.events("emergency") == []

    def test_stays_when_the_rise_may_be_chance(self):
        """A single sample that is much worse moves the mean, not the significance."""
        trial = alive()
        measure = trial.run.judge.measure

        def measure_with_an_outlier():
            result = measure()
            result.losses[trial.run.judge.split.select[0]] += 1000.0
            return result

        trial.run.judge.measure = measure_with_an_outlier
        trial.session.after_epoch()
        assert trial.run.books.select_losses[-1] > 2 * trial.run.books.select_losses[-2]
        assert trial.events("emergency") == []

    def test_stays_when_the_loss_always_wobbles_so(self):
        trial = alive()
        trial.run.books.select_losses[-8:] = [0.6, 5.0] * 4
        wreck(trial, 5.0)
        trial.session.after_epoch()
        assert trial.events("emergency") == []

    def test_without_a_graft_a_worse_held_out_loss_is_the_users_business(self):
        trial = Recipe(config(), policy=Script({})).build().train(3)
        wreck(trial, 5.0)
        trial.session.after_epoch()
        assert trial.events("emergency") == []

    def test_is_told_where_it_cannot_go_back(self):
        trial = alive()
        trial.recovery.forget()
        wreck(trial, math.nan)
        trial.session.after_epoch()
        assert trial.events("rollback") == []
        assert trial.state() is State.FINE_TUNING


def test_a_graft_that_was_not_live_in_the_good_state_is_rolled_back_and_rests():
    trial = Recipe(config(quarantine_epochs=3), policy=Script({1: [""]})).build()
    trial.train_until(lambda trial: bool(trial.events("round_ended")))
    wreck(trial, math.nan)
    steps(trial, 4)
    assert outcomes(trial) == [("", "ROLLED_BACK")]
    states = []
    for _ in range(5):
        trial.session.after_epoch()
        states.append(trial.state())
    assert states == [State.ROLLED_BACK] * 3 + [State.DORMANT] * 2


def test_a_trial_ends_when_its_graft_alone_is_at_fault():
    trial = Recipe(config(), epochs=24, policy=Script({})).build().train(1)
    trial.session.germinate("", "all", settings={"hidden": 4})
    trial.train(3)
    assert trial.state() is State.GRAFTING
    blow_up(trial)
    trial.session.after_epoch()
    assert trial.events("emergency")[0]["response"] == "cull"
    trial.train(1)
    assert trial.events("trial_ended")[0]["reason"] == "no graft is left on trial"
    trial.train()
    trial.session.finish()


def test_steps_that_a_gradient_scaler_skips_are_no_emergency():
    """Infinite gradients behind a finite loss: it lowers its scale, and all is well."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)

    def loss(model, batch):
        return toy.loss(model, batch)

    recipe = Recipe(config(), policy=Script({}))
    trial = recipe.build(loss=loss, scaler=scaler)
    before = {name: value.clone() for name, value in host_state_dict(trial.model).items()}
    steps(trial, 2)
    skipped = all(torch.equal(value, before[name]) for name, value in host_state_dict(trial.model).items())
    trial.train(6)
    assert trial.events("emergency") == trial.events("rollback") == []
    assert skipped == (scaler.get_scale() < 2.0**120)


def test_the_guard_knows_the_scale_of_the_session_in_charge_and_none_once_there_is_no_scaler():
    model = esper.wrap(toy.host(), config())

    def session(scale: float | None) -> esper.Session:
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=100, scaler=scaler)

    def known() -> set[float | None]:
        return {None if (scale := place.state.loss_scale) is None else float(scale) for place in places(model)}

    kept = []  # so that each is put out of charge by the next one
    for scale in (8.0, 4.0, None):
        kept.append(session(scale))
        kept[-1].step(next(iter(toy.batches(11))))
        assert known() == {scale}


def test_losses_are_read_a_step_late_and_resumed(tmp_path):
    trial = alive()
    wreck(trial, math.nan)
    steps(trial, 2)
    trial.session.save(tmp_path)
    resumed = Recipe(config(), epochs=24, policy=Script({1: [""]}, hidden=4)).build()
    resumed.session.load(tmp_path)
    for one in (trial, resumed):
        steps(one, 2)
        assert len(one.events("rollback")) == 1
    assert trial.digest() == resumed.digest()


@pytest.mark.parametrize("lr", few([0.01, 0.03], [0.03]))
@pytest.mark.parametrize("plan", [{1: ["", "2"], 8: ["2", ""]}, {}], ids=["growing", "bare"])
def test_healthy_runs_meet_none(plan, lr):
    recipe = Recipe(config(), epochs=24, policy=Script(plan, hidden=4), optimizer=lambda p: torch.optim.AdamW(p, lr=lr))
    trial = recipe.build().train()
    trial.session.finish()
    assert trial.events("emergency") == trial.events("rollback") == []
