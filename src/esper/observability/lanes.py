"""The way of every lifecycle through its states, as lanes of spans over the steps of the run."""

from itertools import pairwise
from typing import Any

from esper.observability.lifecycles import ENDINGS, LifecycleRecord, last_step, lifecycles
from esper.observability.record import Record

LASTING = "FOSSILIZED"
"""The outcome that lasts to the end of the run; the others are moments, or last until the graft is blended out."""


def lanes(record: Record) -> list[dict[str, Any]]:
    """One lane per lifecycle in order of birth, ready for JSON.

    An arm's steps replay the run's window, so its spans overlap the one in which the run itself waits; ``arm`` tells
    them apart. The last span of a lifecycle that is open, and of a fossil, ends at the last step that is known.
    """
    end = last_step(record)
    arm_ends = {
        (event["arm"], event.get("lifecycle")): event["step"] for _, event in record.of("arm_ended")
    }  # older logs name no lifecycle there
    return [
        {
            "lifecycle": one.number,
            "label": one.label,
            "layer_id": one.layer_id,
            "blueprint": one.blueprint,
            "outcome": one.outcome,
            "reason": one.reason,
            "spans": _spans(one, arm_ends, end),
        }
        for one in lifecycles(record)
    ]


def _spans(one: LifecycleRecord, arm_ends: dict[tuple[str, int | None], int], end: int) -> list[dict[str, Any]]:
    spans = [
        {
            "state": event["target"],
            "from": event["step"],
            "to": event["step"],
            "arm": event["arm"],
            "gates": event["gates"],
            "reason": event["reason"],
        }
        for event in one.transitions
    ]
    if one.born_step is not None and not any(span["state"] == "GERMINATED" for span in spans):
        spans.insert(0, _told_by_report("GERMINATED", one.born_step, None))
    if one.report is not None and not any(span["state"] == one.outcome for span in spans):
        spans.append(_told_by_report(one.report["outcome"], one.report["ended_step"], one.reason))
    for arm in dict.fromkeys(span["arm"] for span in spans):
        of_arm = [span for span in spans if span["arm"] == arm]
        for span, following in pairwise(of_arm):
            span["to"] = max(span["from"], following["from"])
        last = of_arm[-1]
        if arm is None:
            last["to"] = max(last["from"], _end_in_run(one, last["state"], end))
        else:
            last["to"] = max(last["from"], arm_ends.get((arm, one.number), arm_ends.get((arm, None), last["from"])))
    return spans


def _end_in_run(one: LifecycleRecord, state: str, end: int) -> int:
    """Where the last span in the run itself ends."""
    if state == LASTING or state not in ENDINGS or one.report is None:
        return end
    return int(one.report["ended_step"])


def _told_by_report(state: str, step: int, reason: str | None) -> dict[str, Any]:
    """A span whose transition was lost with a damaged line, but which the field report tells of."""
    return {"state": state, "from": step, "to": step, "arm": None, "gates": {}, "reason": reason}
