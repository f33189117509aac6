"""What a sweep is, keeps and says; without any run."""

import json
import re
from dataclasses import replace

import pytest

from esper.contracts.errors import ConfigError
from esper.evaluation.sweep.course import Course, stopped
from esper.evaluation.sweep.page import page
from esper.evaluation.sweep.plan import Asha, Plan, Trial
from esper.evaluation.sweep.record import Outcome, Sweep, continued, read, write
from esper.evaluation.sweep.standing import standings
from esper.evaluation.sweep.words import headline, story


def plan(*parameters, **options):
    trials = [
        Trial(number, one, {"data": "digits", "seed": 0, "epochs": 9, "growth": {"max_rounds": 0}} | one)
        for number, one in enumerate(parameters)
    ]
    return Plan(tuple(trials), **options)


def finished(loss, **measures):
    known = {"held_out_loss": loss, "held_out_metric": 0.5, "test_loss": loss, "test_metric": 0.5, "parameters": 9}
    return Outcome("finished", known | {"grown": 0, "train_flops": 2_000_000, "epochs": 9, "seconds": 1.5} | measures)


GRID = [{"lr": lr, "seed": seed} for lr in (0.1, 0.01) for seed in (0, 1)]


def test_rungs_stand_below_the_last_epoch():
    asha = Asha(grace_epochs=2, reduction_factor=3)
    assert [asha.rungs(epochs) for epochs in (1, 2, 3, 18, 19)] == [(), (), (2,), (2, 6), (2, 6, 18)]


@pytest.mark.parametrize(("mode", "kept"), [("min", [True, False, True, False]), ("max", [True, True, False, True])])
def test_one_of_so_many_goes_on_from_a_rung(mode, kept):
    """The first goes on whatever it has, for there is nothing to hold it against."""
    asha, values = Asha(reduction_factor=2), [0.5, 0.9, 0.3, 0.6]
    assert [asha.goes_on(value, values[:at], mode) for at, value in enumerate(values)] == kept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "test_loss"}, "measured on the test samples"),
        ({"metric": "held_out_los"}, "Did you mean 'held_out_loss'"),
        ({"mode": "least"}, "There is no mode 'least'"),
        ({"metric": "parameters", "asha": Asha()}, "which parameters does not tell"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        plan({"lr": 0.1}, **options)


def test_losses_of_different_data_are_not_compared_by_asha():
    with pytest.raises(ConfigError, match="a sweep of each"):
        plan({"data": "digits"}, {"data": "mnist1d"}, asha=Asha())


def test_a_trial_that_comes_to_a_rung_twice_is_told_the_same(tmp_path):
    course = Course(Sweep(plan(*GRID, asha=Asha(reduction_factor=2))), tmp_path, lambda sweep, trial: None)
    at_rung = {"held_out_loss": 1.0, "epochs": 1}
    assert course.judged(0, at_rung)
    assert not course.judged(1, at_rung | {"held_out_loss": float("nan")})
    assert course.judged(2, at_rung | {"held_out_loss": 0.5})
    assert course.judged(0, at_rung)
    assert not course.judged(1, at_rung | {"held_out_loss": 0.1})
    assert [one.number for one in read(tmp_path).reports] == [0, 1, 2]


def test_what_was_written_is_read_and_goes_on(tmp_path):
    outcomes = {0: finished(1.0), 1: Outcome("failed", reason="no"), 2: stopped({"held_out_loss": 2.0, "epochs": 1})}
    sweep = Sweep(plan(*GRID, asha=Asha()), outcomes)
    write(tmp_path, sweep)
    assert read(tmp_path) == sweep
    on = continued(read(tmp_path), plan(*GRID, asha=Asha()))
    assert [trial.number for trial in on.waiting] == [1, 3]
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith("trial,lr,seed,state,held_out_loss,")
    assert [line.split(",")[3] for line in lines[1:]] == ["finished", "failed", "stopped", "waiting"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (plan(*GRID, mode="max"), 'mode was "min" and is "max"'),
        (plan(*GRID, asha=Asha()), 'asha was null and is {"grace_epochs": 1'),
        (plan(*GRID[:2]), "lr was 0.1, 0.01 and is 0.1; it had 4 trials and has 2"),
        (plan(*GRID[::-1]), "lr was 0.1, 0.01 and is 0.01, 0.1"),
        (plan(*GRID[2:], *GRID[:2]), "lr was"),
    ],
)
def test_a_sweep_that_was_begun_otherwise_is_refused_and_told(other, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        continued(Sweep(plan(*GRID)), other)


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "sweep.json").write_text('{"format": 1, "plan": {}}')
    with pytest.raises(ConfigError, match="is damaged"):
        read(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="of format 2"):
        read(tmp_path)


def test_a_setting_counts_by_its_mean_over_all_seeds():
    """The best single trial is of lr 0.1, and that of a setting with fewer seeds would be better still."""
    parameters = [*GRID, {"lr": 0.5, "seed": 0}, {"lr": 0.5, "seed": 1}]
    losses = [0.1, 0.9, 0.4, 0.3, 0.0]
    sweep = Sweep(plan(*parameters), {number: finished(loss) for number, loss in enumerate(losses)})
    (standing,) = standings(sweep)
    assert [one.parameters["lr"] for one in standing.configurations] == [0.01, 0.1, 0.5]
    assert standing.configurations[0].mean == pytest.approx(0.35)
    assert headline(sweep) == "Best is lr 0.01: held-out loss 0.3500, on average over 2 seeds."
    assert [one.name for one in standing.effects] == ["lr", "seed"]
    assert [value for value, _ in standing.effects[0].by_value] == [0.01, 0.1, 0.5]
    assert "1 is not over yet" in story(sweep)[0]


def test_what_comes_to_the_same_is_as_good():
    sweep = Sweep(plan(*({"lr": lr} for lr in (0.1, 0.2, 0.3))))
    sweep = replace(sweep, outcomes={0: finished(0.4), 1: finished(0.5), 2: finished(0.4)})
    assert headline(sweep) == "Best is lr 0.1: held-out loss 0.4000. As good: lr 0.3."


def test_the_most_can_be_best():
    sweep = Sweep(plan({"lr": 0.1}, {"lr": 0.2}, metric="parameters", mode="max"))
    sweep = replace(sweep, outcomes={0: finished(0.1, parameters=5), 1: finished(0.9, parameters=7)})
    assert headline(sweep) == "Best is lr 0.2: parameters 7."


def test_different_data_are_ranked_apart():
    parameters = [{"data": data, "lr": lr} for data in ("digits", "mnist1d") for lr in (0.1, 0.2)]
    sweep = Sweep(plan(*parameters), {number: finished(loss) for number, loss in enumerate([0.1, 0.2, 0.9, 0.8])})
    best = "On digits, best is lr 0.1: held-out loss 0.1000. On mnist1d, best is lr 0.2: held-out loss 0.8000."
    assert headline(sweep) == best
    assert [effect.name for standing in standings(sweep) for effect in standing.effects] == ["lr", "lr"]


@pytest.mark.parametrize("count", [0, 2, 20])
def test_a_page_tells_all_and_asks_for_nothing(count, tmp_path):
    parameters = [{"lr": 0.001 * 1.5**at, "growth.blueprints": ["<b>"]} for at in range(count + 2)]
    outcomes = {at: finished(0.1 * at) for at in range(count)}
    failed = Outcome("failed", reason="<script> is no blueprint")
    sweep = Sweep(plan(*parameters), outcomes | {count: failed})
    (tmp_path / "trials/0000").mkdir(parents=True)
    (tmp_path / "trials/0000/report.html").touch()
    text = page(sweep, tmp_path)
    assert "&lt;script&gt; is no blueprint" in text
    assert 'href="trials/0000/report.html"' in text
    assert not re.search(r"(src|href)=.?https?:", text)
    assert text.count('class="dot"') == count
    assert ("logarithmic" in text) == (count == 20)


def test_a_loss_that_is_not_finite_is_the_worst_and_no_dot(tmp_path):
    sweep = Sweep(plan({"lr": 0.1}, {"lr": 0.2}), {0: finished(None), 1: finished(3.0)})
    assert headline(sweep).startswith("Best is lr 0.2")
    text = page(sweep, tmp_path)
    assert "not finite" in text
    assert text.count('class="dot"') == 1
    json.dumps(sweep.outcomes[0].measures, allow_nan=False)
