"""What every graft was worth: its mean paired gain in loss on gate samples, with a 95 % interval."""

from typing import Any

from esper.observability.files import Event
from esper.observability.lifecycles import LifecycleRecord, lifecycles
from esper.observability.pairing import Z_95
from esper.observability.record import Record
from esper.observability.shapes import is_number

TWIN, ABLATED = "its twin", "the run without it"


def worth(record: Record) -> list[dict[str, Any]]:
    """All comparisons of grafts with what they had to beat, in the order in which they were made, ready for JSON.

    Several grafts on one live trial are compared with their twin together: ``lifecycle`` is None then, and each is
    besides compared with the run without it.
    """
    known = {one.number: one for one in lifecycles(record)}
    rows = []
    for line, event in record.audit:
        if event["event"] == "arm_ended":
            one = known.get(event.get("lifecycle", -1))
            rows.append(_row(line, event, TWIN, event.get("lifecycle"), event["arm"] if one is None else one.label))
        elif event["event"] == "trial_ended" and "twin_z" in event:
            rows.append(_of_trial(line, event, _judged_together(record, event, known)))
        elif event["event"] == "keep_look":
            one = known.get(event["lifecycle"])
            rows.append(_row(line, event, ABLATED, event["lifecycle"], "" if one is None else one.label))
        elif _tells_ablation(event):
            one = known[event["lifecycle"]]
            measured = {**event["gates"], "step": event["step"], "passed": True}
            rows.append(_row(line, measured, ABLATED, one.number, one.label))
    return rows


def gain_over_twin(rows: list[dict[str, Any]], lifecycle: int) -> dict[str, Any] | None:
    """Mean and interval of a graft's gain over its twin; None if it was not measured, or for several together."""
    of_it = [row for row in rows if row["lifecycle"] == lifecycle and row["against"] == TWIN]
    if not of_it or of_it[-1]["mean"] is None:
        return None
    return {key: of_it[-1][key] for key in ("mean", "low", "high")}


def _tells_ablation(event: Event) -> bool:
    """Whether a graft of a live trial was adopted for what it is worth to the run."""
    is_adoption = event["event"] == "transition" and event["target"] == "FINE_TUNING" and event["lifecycle"] is not None
    return is_adoption and is_number(event["gates"].get("ablation_gain"))


def _row(line: int, event: Event, against: str, lifecycle: int | None, label: str) -> dict[str, Any]:
    prefix = "" if against == TWIN else "ablation_"
    mean, error = event.get(f"{prefix}gain"), event.get(f"{prefix}gain_se")
    margin = None if mean is None or error is None else Z_95 * error
    return {
        "lifecycle": lifecycle,
        "label": label,
        "against": against,
        "mean": mean,
        "low": None if margin is None else mean - margin,
        "high": None if margin is None else mean + margin,
        "z": event.get("twin_z" if against == TWIN else "ablation_z"),
        "passed": event["passed"],
        "step": event["step"],
        "line": line,
    }


def _of_trial(line: int, event: Event, members: list[LifecycleRecord]) -> dict[str, Any]:
    number = members[0].number if len(members) == 1 else None
    label = " + ".join(one.label for one in members) or f"live trial {event['trial']}"
    return _row(line, {"passed": False, **event}, TWIN, number, label)


def _judged_together(record: Record, event: Event, known: dict[int, LifecycleRecord]) -> list[LifecycleRecord]:
    """The grafts of a live trial that had come as far as to be judged."""
    begun = [one for _, one in record.of("trial_begun") if one["trial"] == event["trial"]]
    numbers = [candidate["lifecycle"] for one in begun for candidate in one["candidates"]]
    return [
        known[number]
        for number in numbers
        if any(one["target"] == "EVALUATING" and one["arm"] is None for one in known[number].transitions)
    ]
