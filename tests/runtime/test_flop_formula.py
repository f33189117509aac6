"""FLOPs of batches that were not counted are exact where they follow a polynomial, and estimated elsewhere."""

import random
from collections.abc import Callable

import pytest

from esper.runtime.costs.flops import FIRST_RECOUNT, MOST_COUNTED, FlopMeter
from esper.runtime.state.batches import Sizes

Draw = Callable[[random.Random], Sizes]


def attention(batch: int, length: int) -> int:
    return batch * (96 * length + 28 * length**2)


def pairs(batch: int, source: int, target: int) -> int:
    return batch * (7 * source + 5 * target + source**2 + 3 * source * target + 2 * target**2) + 11


EXACT: dict[str, tuple[Draw, Callable[[Sizes], int], int]] = {
    "rows of one length": (lambda r: ((32, r.randint(1, 500)),), lambda s: 6 * s[0][0] * s[0][1], 4),
    "attention": (lambda r: ((32, r.randint(1, 500)),), lambda s: attention(*s[0]), 5),
    "attention, targets shifted by one": (
        lambda r: ((n := r.randint(2, 64), length := r.randint(2, 500)), (n, length - 1)),
        lambda s: attention(*s[0]),
        12,
    ),
    "length first": (lambda r: ((r.randint(1, 99), r.randint(1, 32)),), lambda s: attention(s[0][1], s[0][0]), 12),
    "source and target": (
        lambda r: ((n := r.randint(1, 40), r.randint(1, 300)), (n, r.randint(1, 300))),
        lambda s: pairs(*s[0], s[1][1]),
        22,
    ),
}


def told(meter: FlopMeter, draw: Draw, cost: Callable[[Sizes], int], times: int = 300) -> tuple[int, list[float]]:
    """How many were counted, and how far off the others were, relative to what is right."""
    stream, counted, wrong = random.Random(0), 0, []
    for _ in range(times):
        sizes = draw(stream)
        known = meter.of("step").flops(sizes)
        if known is None:
            counted += 1
            meter.of("step").learn(sizes, cost(sizes))
        else:
            wrong.append(abs(known / cost(sizes) - 1))
    return counted, wrong


@pytest.mark.parametrize("name", EXACT)
def test_a_polynomial_is_found_from_a_few_counts(name):
    draw, cost, most = EXACT[name]
    meter = FlopMeter()
    counted, wrong = told(meter, draw, cost)
    assert counted <= most
    assert max(wrong) == 0
    assert not meter.of("step").is_estimated


def test_sizes_that_were_counted_cost_what_was_counted():
    meter = FlopMeter()
    meter.of("step").learn(((4, 3),), 17)
    meter.of("step").learn(((4, 5),), 18)
    assert [meter.of("step").flops(((4, n),)) for n in (3, 5)] == [17, 18]
    assert meter.of("another").flops(((4, 3),)) is None


def test_a_formula_is_not_trusted_before_it_has_predicted_two_further_counts():
    """Two points lie on a line in any case."""
    meter = FlopMeter()
    for length in (10, 20):
        meter.of("step").learn(((1, length),), attention(1, length))
    assert meter.of("step").flops(((1, 15),)) is None


def test_an_odd_last_batch_does_not_take_away_what_was_known():
    """It comes once an epoch, always with another length: what is known without it goes on being told."""
    meter, stream, counted = FlopMeter(), random.Random(1), []
    for step in range(100):
        sizes = ((7 if step % 10 == 9 else 32, stream.randint(1, 500)),)
        known = meter.of("step").flops(sizes)
        if known is None:
            counted.append(step)
            meter.of("step").learn(sizes, attention(*sizes[0]))
        else:
            assert known == attention(*sizes[0])
    assert len(counted) <= 12
    assert [step for step in counted if step > 30] == [step for step in counted if step > 30 and step % 10 == 9]


def strided(sizes: Sizes) -> int:
    return 5 * sizes[0][0] * (sizes[0][1] // 3) * (sizes[0][2] // 2)


def test_without_a_polynomial_a_bounded_number_is_counted_and_the_rest_is_estimated():
    meter = FlopMeter()
    counted, wrong = told(meter, lambda r: ((8, r.randint(20, 60), r.randint(20, 60)),), strided)
    assert counted == MOST_COUNTED
    assert meter.of("step").is_estimated
    assert sum(wrong) / len(wrong) < 0.05


def test_work_that_depends_on_the_data_is_estimated_by_its_mean():
    meter = FlopMeter()
    counts = [100, 140] * MOST_COUNTED
    for count in counts:
        if meter.of("step").flops(((4, 3),)) is None or count == 140:
            meter.of("step").learn(((4, 3),), count)
    assert 100 < meter.of("step").flops(((4, 3),)) < 140


def test_a_kind_is_counted_once_more_now_and_then():
    meter = FlopMeter()
    due = [time for time in range(1, 1000) if meter.of("step").is_to_be_recounted()]
    assert due == [FIRST_RECOUNT, 2 * FIRST_RECOUNT, 4 * FIRST_RECOUNT, 8 * FIRST_RECOUNT]


@pytest.mark.parametrize("cost", [lambda sizes: attention(*sizes[0][:2]), strided])
def test_a_meter_goes_on_where_it_was_saved(cost):
    def draw(stream: random.Random) -> Sizes:
        return ((8, stream.randint(20, 60), stream.randint(20, 60)),)

    first = FlopMeter()
    told(first, draw, cost, times=20)
    second = FlopMeter()
    second.load_state_dict(first.state_dict())
    assert told(first, draw, cost) == told(second, draw, cost)
    assert first.state_dict() == second.state_dict()
