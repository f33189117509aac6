"""What a run is at: where it stands, the round under way, its last decisions; and the list of all runs."""

import time
from collections.abc import Sequence
from typing import Any

from esper.contracts.lifecycle import State
from esper.observability.cited import Words, quoted, words
from esper.observability.grown import graft
from esper.observability.live.run import Asked, Run
from esper.observability.metrics.fold import RunState, Trying
from esper.observability.metrics.series import status
from esper.observability.record import Record
from esper.observability.sheets import Sheet, sheet
from esper.observability.told import told

SHOWN = 12
"""Decisions that are told one by one."""

SPARK_POINTS, SPARK_WIDTH, SPARK_HEIGHT = 60, 120, 28


def listed_run(run: Run, opened: str | None, now: float) -> dict[str, Any]:
    """A row of the list of runs, for a template."""
    state = run.state
    planned = state.planned_steps or 0
    return {
        "id": run.id,
        "name": run.name,
        "is_opened": run.id == opened,
        "status": status(state, now),
        "how": how_it_is(state, now),
        "step": state.step,
        "planned": planned,
        "loss": _written(state.select_loss),
        "metric": _written(state.select_metric),
        "awake": sum(state.awake_by_layer.values()),
        "fossils": state.fossilized,
        "trying": _trying(state.trying),
        "trouble": _trouble(state),
        "spark": _spark(state),
    }


def how_it_is(state: RunState, now: float) -> str:
    """In one or two words."""
    if state.last_seen is None:
        return "not begun"
    known = status(state, now)
    return f"silent for {_rough(now - state.last_seen)}" if known == "dead" else known


def now(state: RunState, record: Record) -> dict[str, Any]:
    """What ``sections/now.html.j2`` is filled with."""
    states = state.states
    awake = {one.name: states[one.name] for one in State if states[one.name] and one is not State.DORMANT}
    return {
        "how": how_it_is(state, time.time()),
        "step": state.step,
        "planned": state.planned_steps or 0,
        "epoch": state.epoch,
        "arm": state.arm,
        "steps_per_second": _written(state.steps_per_second),
        "states": {name.lower().replace("_", " "): count for name, count in awake.items()},
        "asleep": states[State.DORMANT.name],
        "trying": _trying(state.trying),
        "candidates": _candidates(state.trying),
        "decisions": decisions(record),
    }


def decisions(record: Record) -> list[dict[str, Any]]:
    """The last ones in words, the latest first."""
    found = []
    for _, event in reversed(record.audit):
        if event["event"] != "note" and (news := told(event)) is not None:  # notes stand at the end of the page
            found.append({"step": event.get("step"), "what": news.what, "text": str(news), "tone": news.tone})
        if len(found) == SHOWN:
            break
    return found


def answered(sent: Sequence[Asked]) -> list[Words]:
    """What became of commands that were sent from here, the latest first."""
    return [
        words(time.strftime("%H:%M:%S, ", time.localtime(one.time)), one.what, ": ", _answer(one))
        for one in reversed(sent[-SHOWN:])
    ]


def _answer(one: Asked) -> Words:
    if one.is_accepted is None:
        return words("asked; the run answers at the end of a step.")
    if one.is_accepted:
        return words(f"done at step {one.step:,}.")
    return words("refused: ", quoted(one.reason))


def _trying(trying: Trying | None) -> str:
    if trying is None:
        return ""
    number = len(trying.candidates)
    candidates = f"{number} candidate{'s' * (number != 1)}"
    what = "round" if trying.kind == "round" else "live trial"
    return f"{what} {trying.number} with {candidates}, since step {trying.begun_step:,}"


def _candidates(trying: Trying | None) -> Sheet | None:
    if trying is None:
        return None
    ended = {one.get("lifecycle"): one for one in trying.ended}
    columns = [("candidate", False), ("its arm", False), ("z against the twin", True)]
    rows = []
    for one in trying.candidates:
        arm = ended.get(one["lifecycle"])
        how = "waits" if arm is None else "beat the twin" if arm["passed"] else "did not beat the twin"
        if trying.kind != "round":
            how = "grows in the run itself"
        rows.append([graft(one), how, "" if arm is None else _written(arm["twin_z"])])
    return sheet(columns, rows)


def _trouble(state: RunState) -> str:
    counts = {
        "rollback": state.kinds["rollback"],
        "emergency": state.kinds["emergency"],
        "fault": state.kinds["fault"],
        "loss that is not finite": state.losses_not_finite,
    }
    plurals = {"emergency": "emergencies", "loss that is not finite": "losses that are not finite"}
    found = [
        f"{count} {name if count == 1 else plurals.get(name, name + 's')}" for name, count in counts.items() if count
    ]
    return ", ".join(found)


def _spark(state: RunState) -> str:
    """Points of the held-out loss as an SVG polyline has them; empty where there are none."""
    points = [(one["step"], one["val_loss"]) for one in state.curve.points]
    drawn = [(step, loss) for step, loss in points if step is not None and loss is not None]
    drawn = drawn[:: max(1, len(drawn) // SPARK_POINTS)]
    if len(drawn) < 2:
        return ""
    low, high = min(loss for _, loss in drawn), max(loss for _, loss in drawn)
    last = max(state.planned_steps or 0, drawn[-1][0])
    scale = (SPARK_HEIGHT - 4) / (high - low) if high > low else 0.0
    return " ".join(f"{SPARK_WIDTH * step / last:.1f},{2 + (high - loss) * scale:.1f}" for step, loss in drawn)


def _written(value: float | None) -> str:
    if value is None:
        return ""
    return "not finite" if value != value else f"{value:.4g}"


def _rough(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' * (number != 1)}"
    return "half a minute"
