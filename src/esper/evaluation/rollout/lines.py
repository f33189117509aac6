"""The health of a run, from the lines of its logs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from esper.evaluation.rollout.health import Point, RunHealth

AHEAD_S = 300.0
"""Clocks may differ by so much: a time that is later is wrong."""

_TROUBLE = ("emergency", "rollback", "fault")

Line = dict[str, Any]


def health(run: str, logs: Sequence[Sequence[Line]], fault: str | None, flag: str, now: float) -> RunHealth | None:
    """What lines tell of a run; None if they do not tell of the flag.

    Args:
        run: its name.
        logs: lines that were written one after the other, in as many sequences as there are.
        fault: what was wrong with lines that are not among these, in words; None if nothing was.
        flag: name of the flag.
        now: seconds since 1970.
    """
    lines = [line for log in logs for line in log]
    resolved: dict[str, Any] = next(_of(lines, "flags"), {"flags": {}})["flags"]
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    if flag not in resolved or not times:
        return None
    model, end = next(_of(lines, "model"), {}), next(_of(lines, "finished"), None)
    return RunHealth(
        run=run,
        kind=f"{model.get('type')} of {model.get('parameters')} parameters, {model.get('planned_steps')} steps",
        is_on=bool(resolved[flag]["is_on"]),
        began=min(times),
        last=max(times),
        points=tuple(_points(lines)),
        is_finished=end is not None,
        loss=None if end is None else end["select_loss"],
        trouble=_trouble(lines),
        damage=fault or _damage(logs, len(times) < len(lines), max(times) - now),
    )


def _of(lines: Iterable[Line], *kinds: str) -> Iterator[Line]:
    return (line for line in lines if line["event"] in kinds)


def _points(lines: list[Line]) -> Iterator[Point]:
    """Where the run stood, and what memory it held, the device's with it; in an arm it stands still."""
    for line in _of(lines, "vitals"):
        if line["arm"] is None and isinstance(line.get("time"), int | float):
            held = line["memory_bytes"]
            memory_bytes = None if held is None else held + (line["device_memory_bytes"] or 0)
            yield Point(line["time"], line["step"], memory_bytes)


def _trouble(lines: list[Line]) -> str | None:
    for line in _of(lines, *_TROUBLE):
        return f"{line['event']} at step {line['step']}: {line.get('reason', 'values were not finite')}"
    for line in _of(lines, "epoch"):
        if line["train_loss"] is None or line["val_loss"] is None:
            return f"its loss at step {line['step']} is not finite"
    ends_badly = any(line["select_loss"] is None for line in _of(lines, "finished"))
    return "its loss at the end is not finite" if ends_badly else None


def _damage(logs: Sequence[Sequence[Line]], lacks_time: bool, ahead_s: float) -> str | None:
    if lacks_time:
        return "a line has no time"
    if ahead_s > AHEAD_S:
        return f"a line is from the future: {ahead_s:.0f} s from now"
    for log in logs:
        for before, after in pairwise(log):
            if after["time"] < before["time"] - AHEAD_S:
                return f"a line is {before['time'] - after['time']:.0f} s older than the one before it"
    lines = [line for log in logs for line in log]
    has_ended, has_boundary = any(_of(lines, "finished")), any(_of(lines, "epoch"))
    return "it has finished, and tells no boundary" if has_ended and not has_boundary else None
