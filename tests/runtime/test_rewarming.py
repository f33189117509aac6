"""Re-warming: a host whose learning rate has decayed learns along with a graft that was born late."""

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from esper.contracts.lifecycle import State
from esper.runtime.training.rewarming import BIRTHS
from tests.few import few
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import STEPS_PER_EPOCH, Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest

PEAK, LOW, SHARE = 0.03, 0.02, 0.5
WARM_EPOCHS = 2


def falls_early(optimizer, steps):
    """Two epochs at the peak, all others at 2 % of it."""
    return LambdaLR(optimizer, lambda step: 1.0 if step < WARM_EPOCHS * STEPS_PER_EPOCH else LOW)


def recipe(born: int = 3, rewarm: float | None = SHARE, **options) -> Recipe:
    """A whole-model graft is tried from the end of epoch ``born`` on; the run has twelve, a round's window four."""
    trial, settings = options.pop("trial", "round"), options.pop("settings", {})
    config = growing(rewarm=rewarm, trial=trial, **{"keep_looks": (0.7,)} | settings)
    return Recipe(config, scheduler=falls_early, policy=Script({born: [""]}, trial=trial), **options)


def rates_of(trial: Trial) -> list[tuple[str | None, int, list[float]]]:
    """Filled while it trains: the arm, the step, and the rates that the optimizer really used."""
    used: list[tuple[str | None, int, list[float]]] = []
    trial.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(
            (trial.run.arm, trial.run.step, [float(group["lr"]) for group in optimizer.param_groups])
        )
    )
    return used


def decay(step: int) -> float:
    return min(1.0, (1 - step / 120) / 0.3)


def test_an_arm_and_the_run_that_adopts_it_train_at_the_lifted_rate():
    trial = recipe().build()
    used = rates_of(trial)
    trial.train()
    window = [rates for arm, step, rates in used if arm is None and 30 <= step < 70]
    assert window == [[pytest.approx(LOW * PEAK)]] * 40
    arm = [(step, rates) for arm, step, rates in used if arm is not None and step < 68]
    assert {step for step, _ in arm} == set(range(30, 68))
    assert all(rates == [pytest.approx(SHARE * PEAK)] for _, rates in arm)
    adopted = [(step, rates) for arm, step, rates in used if arm is None and 70 <= step < 118]
    assert all(rates == [pytest.approx(SHARE * PEAK * decay(step))] for step, rates in adopted if decay(step) > 0.2)
    assert trial.events("round_ended")[0]["adopted"] is not None


def test_while_the_graft_is_frozen_in_its_arm_the_host_keeps_its_own_rate():
    trial = recipe().build()
    used = rates_of(trial)
    trial.train(7)
    (frozen,) = (event["step"] for event in trial.events("transition") if event["target"] == "STABILIZATION")
    held = [rates for arm, step, rates in used if arm is not None and step >= frozen]
    assert held
    assert all(rates == [pytest.approx(LOW * PEAK)] for rates in held)


@pytest.mark.parametrize("born", [1, 3])
def test_only_a_graft_that_was_born_late_lifts_the_rate(born):
    """The window of a birth at the peak reaches into the low rates, which stay what they are."""
    trial = recipe(born).build()
    used = rates_of(trial)
    trial.train(7)
    lifted = [rates for arm, step, rates in used if arm is not None and rates[0] > LOW * PEAK * 1.5 and step >= 20]
    assert bool(lifted) == (born == 3)


def test_the_scheduler_sees_its_own_rates_only():
    seen = {}
    for share in (None, SHARE):
        trial = recipe(rewarm=share).build().train()
        seen[share] = [event["lr"] for event in trial.events("epoch")], trial.optimizer.param_groups[0]["lr"]
    assert seen[None] == seen[SHARE]


def test_a_run_that_adopts_nothing_is_the_same_to_the_byte():

    def ended(rewarm, gate_z):
        body = recipe(rewarm=rewarm, settings={"gate_z": gate_z}).build().train().run.snapshots.body()
        kept = {name: value for name, value in body["model"].items() if not name.endswith(BIRTHS)}
        return tree_digest(body | {"model": kept})

    assert ended(1.0, gate_z=1e9) == ended(None, gate_z=1e9)
    assert ended(1.0, gate_z=2.33) != ended(None, gate_z=2.33)  # negative control


@pytest.mark.parametrize(("born", "point"), few([(3, 23), (3, 50), (3, 75), (1, 60)], [(3, 50), (1, 60)]))
def test_a_rewarmed_run_resumes_to_the_byte(born, point, tmp_path):
    """Also where the graft was born at the peak, and the run is resumed at a rate that has decayed since."""
    expected = whole(recipe(born))
    assert expected.events("round_ended")[0]["adopted"] is not None
    cut(recipe(born), lambda trial: trial.session.step_count == point, tmp_path)
    assert_equal(resume(recipe(born), tmp_path), expected)


def test_a_run_that_stopped_within_a_rewarmed_arm_resumes_to_the_byte(tmp_path):
    expected = whole(recipe())

    def stop(event):
        if event["event"] == "transition" and event["target"] == "STABILIZATION":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(recipe(), directory=tmp_path, checkpoint_steps=7, on_event=stop)
    resumed = resume(recipe(), tmp_path / "checkpoints")
    assert_equal(resumed, expected)


def test_all_groups_are_lifted_by_one_factor_and_tensors_in_place():
    rate = torch.tensor(PEAK / 10)

    def two_groups(parameters):
        first, *others = parameters
        return AdamW([{"params": others, "lr": PEAK}, {"params": [first], "lr": rate}], foreach=False)

    trial = recipe(optimizer=two_groups).build()
    used = rates_of(trial)
    trial.train(7)
    lifted = [rates for arm, step, rates in used if arm is not None and step < 68]
    assert all(rates == [pytest.approx(SHARE * PEAK), pytest.approx(SHARE * PEAK / 10)] for rates in lifted)
    assert trial.optimizer.param_groups[1]["lr"] == pytest.approx(LOW * PEAK / 10)
    assert isinstance(trial.optimizer.param_groups[1]["lr"], torch.Tensor)


def test_a_live_trial_lifts_the_run_and_not_its_twin():
    trial = recipe(trial="live", settings={"round_fraction": 0.2}).build()
    used = rates_of(trial)
    trial.train(8)
    assert {event["target"] for event in trial.events("transition")} >= {"GRAFTING", "EVALUATING"}
    grafting = {(step, rates[0]) for arm, step, rates in used if arm is None and 30 <= step < 50}
    twin = [rates[0] for arm, _, rates in used if arm is not None]
    assert grafting == {(step, SHARE * PEAK) for step in range(30, 50)}
    assert twin
    assert max(twin) == pytest.approx(LOW * PEAK)


def test_a_graft_that_was_born_late_is_not_frozen_before_the_lifted_rate_has_decayed():
    """Without re-warming the rate counts as decayed from the start, and the first look freezes it."""
    ended = {}
    for share in (None, SHARE):
        trial = recipe(rewarm=share).build().train()
        trial.session.finish()
        ended[share] = [one.ended_step for one in trial.session.field_reports if one.outcome == "FOSSILIZED"]
    assert ended[None] == [90]
    assert ended[SHARE] == [120]


def test_a_rate_of_zero_stays_zero():
    def stops(optimizer, steps):
        return LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 0.0)

    trial = Recipe(growing(rewarm=SHARE), scheduler=stops, policy=Script({3: [""]})).build()
    used = rates_of(trial)
    trial.train(7)
    assert {rates[0] for arm, _, rates in used if arm is not None} == {0.0}


def test_a_finished_session_leaves_no_hook_behind():
    trial = recipe().build().train()
    trial.session.finish()
    assert not trial.optimizer._optimizer_step_pre_hooks
    assert not trial.optimizer._optimizer_step_post_hooks
    assert trial.state() is State.DORMANT
