"""Comparisons of functions of this process: what is decided, told, kept and gone on with."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from esper.contracts.errors import ConfigError
from esper.evaluation.ab import record
from esper.evaluation.ab.metrics import Wishes
from esper.evaluation.ab.record import Plan
from esper.evaluation.ab.runner import ABTestRunner
from esper.evaluation.ab.subject import InProcess, UnitFailedError
from esper.evaluation.ab.verdict import Verdict


def noisy(name, mean, side):
    """A subject whose loss scatters by one around a mean."""
    return InProcess(name, lambda seed: {"loss": mean + np.random.default_rng([seed, side]).normal()})


def compared(a, b, directory=None, **plan):
    return ABTestRunner(a, b, Plan(**plan), directory).run()


def failing(name, when):
    def measure(seed):
        if when(seed):
            raise UnitFailedError("it fell over")
        return {"loss": random.Random(f"{name} {seed}").random()}

    return InProcess(name, measure)


def test_the_side_with_less_loss_wins_and_the_comparison_ends():
    found = compared(noisy("a", 5.0, 0), noisy("b", 0.0, 1), max_pairs=60)
    assert found.findings["loss"].verdict is Verdict.B
    assert len(found.pairs) < 20
    assert found.ended == "every primary metric is decided"
    assert found.is_well


def test_more_accuracy_is_better():
    a = InProcess("a", lambda seed: {"accuracy": 0.9 + 0.01 * (seed % 3)})
    b = InProcess("b", lambda seed: {"accuracy": 0.8 + 0.01 * (seed % 2)})
    assert compared(a, b).findings["accuracy"].verdict is Verdict.A


def test_sides_that_are_alike_are_equivalent_within_a_margin_and_inconclusive_without_one():
    a, b = noisy("a", 0.0, 0), noisy("b", 0.0, 1)
    margins = Wishes(margins={"loss": "1.5"})
    assert compared(a, b, max_pairs=60, wishes=margins).findings["loss"].verdict is Verdict.EQUIVALENT
    assert compared(a, b, max_pairs=20).findings["loss"].verdict is Verdict.INCONCLUSIVE


def test_a_ratio_is_compared_as_one():
    """A tenth is a tenth, whatever the seed makes of the size."""
    a = InProcess("a", lambda seed: {"seconds": 1.1 * 10**seed})
    b = InProcess("b", lambda seed: {"seconds": 1.0 * 10**seed})
    found = compared(a, b)
    assert found.findings["seconds"].verdict is Verdict.B
    assert found.findings["seconds"].difference == pytest.approx(np.log(1.1))


def test_the_order_is_drawn_and_seeds_are_paired():
    seen = []
    subjects = [InProcess(name, lambda seed, name=name: seen.append((name, seed)) or {"loss": 0.0}) for name in "ab"]
    found = compared(*subjects, max_pairs=40, first_seed=7)
    assert [pair.seed for pair in found.pairs] == list(range(7, 47))
    orders = "".join(pair.order[0] for pair in found.pairs)
    assert 10 < orders.count("A") < 30
    assert "AA" in orders
    assert "BB" in orders
    assert [name.upper() for name, _ in seen[::2]] == list(orders)


def test_metrics_share_alpha_and_a_primary_one_takes_more():
    both = InProcess("a", lambda seed: {"loss": 0.0, "accuracy": 0.0})
    other = InProcess("b", lambda seed: {"loss": 0.0, "accuracy": 0.0})
    alphas = [one.alpha for one in compared(both, other, max_pairs=1).metrics]
    assert alphas == pytest.approx([0.025, 0.025])
    wishes = Wishes(primary=("loss",))
    alphas = [one.alpha for one in compared(both, other, max_pairs=1, wishes=wishes).metrics]
    assert alphas == pytest.approx([0.04, 0.01])


def test_only_primary_metrics_hold_up_the_end():
    a = InProcess("a", lambda seed: {"loss": 1.0, "accuracy": random.Random(seed).random()})
    b = InProcess("b", lambda seed: {"loss": 0.0, "accuracy": random.Random(-seed - 1).random()})
    assert len(compared(a, b, max_pairs=40, wishes=Wishes(primary=("loss",))).pairs) < 15
    assert len(compared(a, b, max_pairs=40).pairs) == 40


def test_a_verdict_stays():
    """A is far better for 30 pairs, then far worse for as many."""
    a = InProcess("a", lambda seed: {"loss": -1.0 if seed < 30 else 1e3, "error": random.Random(seed).random()})
    b = InProcess("b", lambda seed: {"loss": 0.0, "error": random.Random(-seed - 1).random()})
    found = compared(a, b, max_pairs=60).findings["loss"]
    assert found.verdict is Verdict.A
    assert found.decided_after < 15
    assert found.pairs == 60
    assert found.difference > 0


def test_failed_units_are_told_and_pairs_with_one_are_not_compared():
    found = compared(failing("a", lambda seed: seed == 2), failing("b", lambda seed: False), max_pairs=5)
    assert found.failures == (1, 0)
    assert found.pairs[2].a.failed == "it fell over"
    assert found.findings["loss"].pairs == 4
    assert found.suspicion is None


def test_a_side_that_loses_many_units_makes_the_comparison_suspect():
    found = compared(failing("a", lambda seed: False), failing("b", lambda seed: seed % 2), max_pairs=60)
    assert "only B in 11" in found.suspicion
    assert found.ended == "it is suspect"
    assert not found.is_well


def test_losses_on_both_sides_are_not_suspect():
    """Negative control."""
    found = compared(failing("c", lambda s: s % 4 == 0), failing("d", lambda s: s % 4 == 2), max_pairs=60)
    assert found.suspicion is None
    assert found.failures == (15, 15)


def test_a_side_that_always_fails_is_given_up():
    found = compared(failing("a", lambda seed: True), failing("b", lambda seed: False))
    assert found.ended == "A failed in 5 pairs in a row"
    assert len(found.pairs) == 5
    assert not found.is_well


def test_a_side_that_is_put_right_goes_on(tmp_path):
    """All units fail from the third pair on, as if somebody broke the code; then it is mended."""
    broken = [failing(name, lambda seed: seed >= 2) for name in "ab"]
    assert compared(*broken, tmp_path, max_pairs=30).ended == "A failed in 5 pairs in a row"
    found = compared(*(failing(name, lambda seed: False) for name in "ab"), tmp_path, max_pairs=10)
    assert found.failures == (5, 5)
    assert found.findings["loss"].pairs == 5
    assert found.is_well


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", True, None])
def test_a_metric_that_is_no_finite_number_is_a_failed_unit(value):
    odd = InProcess("odd", lambda seed: {"loss": value})
    found = compared(odd, noisy("b", 0.0, 1), max_pairs=1)
    assert "loss is" in found.pairs[0].a.failed


def test_a_metric_that_is_missing_once_is_a_failed_unit():
    sometimes = InProcess("a", lambda seed: {"error" if seed == 1 else "loss": 0.5})
    found = compared(sometimes, noisy("b", 0.0, 1), max_pairs=3)
    assert found.pairs[1].a.failed == "there is no loss"


@pytest.mark.parametrize("sides", [("a", "b"), ("b", "a")])
def test_a_metric_of_one_side_alone_is_refused_rather_than_left_out(sides):
    of = {"a": {"loss": 0.5}, "b": {"loss": 0.5, "accuracy": 0.9}}
    with pytest.raises(ConfigError, match=f"{'AB'[sides.index('b')]} measures 'accuracy', and"):
        compared(*(InProcess(side, lambda seed, side=side: of[side]) for side in sides))


def test_interrupted_anywhere_it_ends_as_it_would_have(tmp_path):
    """After every pair in turn, as if killed before the next."""

    class StoppedError(Exception):
        pass

    def stop(comparison):
        raise StoppedError

    a, b = noisy("a", 1.0, 0), noisy("b", 0.0, 1)
    whole = compared(a, b, max_pairs=12)
    for _ in range(len(whole.pairs) - 1):
        with pytest.raises(StoppedError):
            ABTestRunner(a, b, Plan(max_pairs=12), tmp_path, stop).run()
    assert compared(a, b, tmp_path, max_pairs=12) == whole
    assert record.read(tmp_path) == whole


def test_it_goes_on_to_more_pairs_where_it_is_not_decided(tmp_path):
    a, b = noisy("a", 0.0, 0), noisy("b", 0.0, 1)
    compared(a, b, tmp_path, max_pairs=3)
    assert len(compared(a, b, tmp_path, max_pairs=5).pairs) == 5
    again = compared(a, b, tmp_path, max_pairs=4)
    assert len(again.pairs) == 5
    assert again.ended == "no more were asked for"


@pytest.mark.parametrize("change", [{"alpha": 0.1}, {"first_seed": 1}, {"wishes": Wishes(margins={"loss": "1"})}])
def test_it_does_not_go_on_with_another_comparison(tmp_path, change):
    a, b = noisy("a", 0.0, 0), noisy("b", 0.0, 1)
    compared(a, b, tmp_path, max_pairs=2)
    before = (tmp_path / record.STATE).read_bytes()
    with pytest.raises(ConfigError, match="begun with another"):
        compared(a, b, tmp_path, **{"max_pairs": 2} | change)
    with pytest.raises(ConfigError, match="begun with another B"):
        compared(a, noisy("c", 0.0, 2), tmp_path, max_pairs=2)
    assert (tmp_path / record.STATE).read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2}', "\x00"])
def test_a_damaged_state_is_refused(tmp_path, text):
    (tmp_path / record.STATE).write_text(text)
    with pytest.raises(ConfigError, match=r"is damaged|is of format 2"):
        compared(noisy("a", 0.0, 0), noisy("b", 0.0, 1), tmp_path)
    assert (tmp_path / record.STATE).read_text() == text


def test_the_state_is_plain_json_with_open_bounds_as_null(tmp_path):
    compared(noisy("a", 0.0, 0), noisy("b", 0.0, 1), tmp_path, max_pairs=1)
    values = json.loads((tmp_path / record.STATE).read_text())
    assert values["findings"]["loss"]["low"] is None
    assert values["findings"]["loss"]["verdict"] == "inconclusive"


def test_sides_that_are_the_same_are_refused_unless_that_is_meant():
    one, other = noisy("a", 0.0, 0), noisy("b", 0.0, 1)
    with pytest.raises(ConfigError, match="A and B are the same"):
        ABTestRunner(one, one, Plan())
    with pytest.raises(ConfigError, match="Leave --null out"):
        ABTestRunner(one, other, Plan(is_null=True))


def test_a_check_of_the_set_up_must_find_no_winner():
    count = iter(range(1000))
    drifts = InProcess("drifts", lambda seed: {"loss": float(next(count))})
    assert compared(drifts, drifts, is_null=True).is_well
    found = compared(drifts, drifts, is_null=True)
    winner = replace(found.findings["loss"], verdict=Verdict.A)
    assert not replace(found, findings={"loss": winner}).is_well


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(primary=("los",)), "--primary: nothing measures 'los'. Did you mean 'loss'"),
        (Wishes(margins={"lost": "1"}), "--margin: nothing measures 'lost'"),
        (Wishes(margins={"loss": "2%"}), "loss is compared by difference"),
        (Wishes(more=("speed",)), "--more: nothing measures 'speed'"),
    ],
)
def test_wishes_that_fit_no_metric_are_refused_before_anything_is_kept(tmp_path, wishes, message):
    with pytest.raises(ConfigError, match=message):
        compared(noisy("a", 0.0, 0), noisy("b", 0.0, 1), tmp_path, wishes=wishes)
    assert not list(tmp_path.iterdir())


def test_a_name_that_does_not_tell_which_way_is_better_is_refused():
    a, b = (InProcess(name, lambda seed: {"wobble": 1.0}) for name in "ab")
    with pytest.raises(ConfigError, match="--more wobble or --less wobble"):
        compared(a, b)
    assert not compared(a, b, max_pairs=1, wishes=Wishes(less=("wobble",))).metrics[0].is_more_better


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "inf", "much", "%", "-2%"])
def test_a_margin_is_above_0(margin):
    with pytest.raises(ConfigError, match="a margin is a number above 0"):
        Wishes(margins={"loss": margin})


@pytest.mark.parametrize("plan", [{"alpha": 0.0}, {"alpha": 1.0}, {"max_pairs": 0}, {"laps": 0}, {"first_seed": -1}])
def test_a_plan_out_of_range_is_refused(plan):
    with pytest.raises(ConfigError, match="must be"):
        Plan(**plan)
