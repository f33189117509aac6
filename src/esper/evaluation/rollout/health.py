"""What is known of the health of one run, and what that says for good.

A source gives :class:`RunHealth`; what follows from it is the same for all sources.
"""

from collections.abc import Container
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Protocol

from esper.evaluation.rollout.plan import Criteria

STEP_TIME, LOSS, ERRORS, LEAKS, DAMAGE = "step time", "loss", "errors", "leaks", "damage"
PERFORMANCE = (STEP_TIME, LOSS)

ENOUGH_POINTS = 12
"""Points from which a run that has not ended tells its step time, and memory can be said to grow without end."""

_LEAST_GROWTH = 0.1
_LEAST_OF_LAST = 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run stood, as of the event ``vitals``.

    Args:
        time: seconds since 1970.
        step: batches done.
        memory_bytes: that the process held; None where it was not told.
    """

    time: float
    step: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RunHealth:
    """What a source knows of one run.

    Args:
        run: its name, of its own within the source.
        kind: runs are compared with runs of their kind only: another model takes another time.
        is_on: whether it resolved the flag to on.
        began: seconds since 1970.
        last: when it last told anything.
        points: where it stood, in order.
        is_finished: whether it has done all its steps.
        loss: held-out loss at its end; None if it has none.
        trouble: what went wrong in it, in words; None if nothing did.
        damage: what is wrong with its data, in words; None if nothing is.
    """

    run: str
    kind: str
    is_on: bool
    began: float
    last: float
    points: tuple[Point, ...] = field(default=(), repr=False)
    is_finished: bool = False
    loss: float | None = None
    trouble: str | None = None
    damage: str | None = None


class Source(Protocol):
    """Where runs are heard of."""

    def runs(self, flag: str, since: float, known: Container[str]) -> list[RunHealth]:
        """Runs that began since, and resolved the flag; in the order in which they began.

        Args:
            flag: its name.
            since: seconds since 1970.
            known: runs of which all is known already, and which need not be read again.

        Raises:
            OSError, BusUnavailableError: if the source does not answer: there are no data now.
        """

    def close(self) -> None:
        """Let it go."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing that is known of one run for good: what comparisons count.

    Args:
        measure: ``step time`` (seconds), ``loss``, or ``errors``, ``leaks`` and ``damage`` (1 or 0).
        run: whose.
        kind: likewise.
        is_on: likewise.
        value: of the measure.
        why: of an error or damage, in words.
    """

    measure: str
    run: str
    kind: str
    is_on: bool
    value: float
    why: str = ""


def units(health: RunHealth, now: float, criteria: Criteria) -> list[Unit]:
    """All that is known of a run for good by now. Damaged data tell nothing but that."""
    found: list[Unit] = []

    def tell(measure: str, value: float, why: str = "") -> None:
        found.append(Unit(measure, health.run, health.kind, health.is_on, value, why))

    if health.damage is not None:
        tell(DAMAGE, 1, health.damage)
        return found
    is_stale = not health.is_finished and now - health.last > criteria.stale_s
    has_ended = health.is_finished or is_stale
    if health.trouble is not None or is_stale:
        tell(ERRORS, 1, health.trouble or f"it has told nothing for {criteria.stale_s:g} s, and has not ended")
    elif health.is_finished:
        tell(ERRORS, 0)
    step_s = step_time(health.points)
    if step_s is not None and (has_ended or len(health.points) >= ENOUGH_POINTS):
        tell(STEP_TIME, step_s)
    if health.is_finished and health.loss is not None:
        tell(LOSS, health.loss)
    if grows_without_end(health.points):
        tell(LEAKS, 1)
    elif has_ended and len(health.points) >= ENOUGH_POINTS:
        tell(LEAKS, 0)
    return found


def step_time(points: tuple[Point, ...]) -> float | None:
    """Seconds a step, with all that the run does beside its steps; None where points do not tell it."""
    if len(points) < 2:
        return None
    steps, seconds = points[-1].step - points[0].step, points[-1].time - points[0].time
    return seconds / steps if steps > 0 and seconds > 0 else None


def grows_without_end(points: tuple[Point, ...]) -> bool:
    """Whether memory grows steadily through the second half of what is known.

    What grows at first and then less and less, in steps as grafts are adopted, or by a tenth at most, does not: the
    medians of the four quarters of that half must rise from each to the next by more than a twelfth of the whole rise,
    the last of them at least half as much as the first, and by a tenth in all.
    """
    held = [point.memory_bytes for point in points if point.memory_bytes is not None]
    if len(held) < ENOUGH_POINTS:
        return False
    half = held[len(held) // 2 :]
    edges = [round(part * len(half) / 4) for part in range(5)]
    levels = [median(half[begin:end]) for begin, end in pairwise(edges)]
    rises = [after - before for before, after in pairwise(levels)]
    whole = levels[-1] - levels[0]
    is_steady = all(rise > whole / 12 for rise in rises) and rises[-1] >= _LEAST_OF_LAST * rises[0]
    return whole > _LEAST_GROWTH * levels[0] and is_steady
