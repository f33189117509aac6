"""The sentences beside the pictures of a page, for a reader who sees none, and why a section has nothing to show."""

from collections.abc import Mapping
from typing import Any

from esper.observability.cited import Document, Name, Words, count, counted, line, listed, total, words
from esper.observability.files import AUDIT, CONFIG, METRICS, Numbered
from esper.observability.lattice import MEASURES
from esper.observability.lifecycles import ENDINGS, lifecycles
from esper.observability.record import Record


def why_empty(record: Record, tables: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str | None]:
    """Why a section of the page has nothing to show; None where it has."""
    is_open = record.status == "unfinished"
    reasons = {
        "curves": "No boundary was reached yet, so there is nothing to draw."
        if is_open
        else "The log tells of no boundary, so there is nothing to draw.",
        "anatomy": "The log does not tell: this run was recorded by an older version, or the line was lost.",
        "lanes": "No seed has germinated.",
        "worth": "No graft has been compared with its twin yet." if is_open else "No graft was compared with its twin.",
        "lattice": "What the seeds sensed was not recorded.",
        "reports": "No lifecycle has ended.",
        "refusals": "Every command was carried out.",
    }
    if not record.has_begun:
        reasons = dict.fromkeys(reasons, "The run has not begun yet.")
    reasons |= {"rows": _why_no_rows(record), "settings": _why_no_settings(record)}
    is_there = {**tables, **content, "curves": content["curves"]["run"]["steps"]}
    return {name: None if is_there[name] else reason for name, reason in reasons.items()}


def _why_no_rows(record: Record) -> str:
    if record.status == "damaged":
        return "The result cannot be read."
    if record.is_afar:
        return "A message bus does not tell results: rows and controls stand in the report of the run."
    if record.is_of_own_loop:
        return "A session of your own trains no controls: only esper run does, at the end of a run."
    return "There is no result yet: rows and controls are measured at the end of a run by esper run."


def _why_no_settings(record: Record) -> str:
    if record.is_afar:
        return "A message bus does not tell the configuration."
    if record.is_of_own_loop:
        return "A session of your own writes no configuration: only esper run does."
    return "The configuration is missing, or cannot be read."


def summaries(record: Record, content: Mapping[str, Any]) -> dict[str, Words]:
    """One or two sentences for every picture."""
    return {
        "curves": _of_curves(record),
        "anatomy": _of_anatomy(record),
        "lanes": _of_lanes(record),
        "worth": _of_worth(record, content["worth"]),
        "lattice": _of_lattice(record, content["lattice"]),
    }


def _of_curves(record: Record) -> Words:
    if not record.epochs:
        return Words()
    first, last = (line(METRICS, record.epochs[index]) for index in (0, -1))
    if first.content["val_loss"] is None or last.content["val_loss"] is None:
        return words("The held-out loss was not finite at the first or the last of ", _boundaries(record.epochs), ".")
    drop = first.content["val_loss"] - last.content["val_loss"]
    how = "fell" if drop > 0 else "rose" if drop < 0 else "stayed"
    return words(
        *(f"The held-out loss {how} from ", first.cite("val_loss", spec="loss"), " to "),
        *(last.cite("val_loss", spec="loss"), " over ", _boundaries(record.epochs), "."),
    )


def _boundaries(lines: list[Numbered]) -> Words:
    return counted(count([line(METRICS, one).source("step") for one in lines]), "boundary", "boundaries")


def _of_anatomy(record: Record) -> Words:
    models = record.of("model")
    if not models:
        return Words()
    model = line(AUDIT, models[0])
    places = [model.source("places", index) for index in range(len(model.content["places"]))]
    said = words("The host is of type ", Name(model.content["type"]), ", with ")
    said += counted(model.cite("parameters"), "parameter")
    said += words(" and ", counted(count(places), "place"), " at which it could grow. " if places else ". ")
    kept = [one.label for one in lifecycles(record) if one.outcome == "FOSSILIZED"]
    if not kept:
        is_open = record.status == "unfinished"
        return said + words("No graft has been kept so far." if is_open else "No graft was kept.")
    return said + words("Kept: ", listed([Name(label) for label in kept]), ".")


def _of_lanes(record: Record) -> Words:
    found = record.of("transition")
    born = [line(AUDIT, one).source("target") for one in found if one[1]["target"] == "GERMINATED"]
    said: list[Any] = []
    for outcome in sorted(ENDINGS):
        ended = [line(AUDIT, one).source("target") for one in found if one[1]["target"] == outcome]
        if ended:
            said.append(words(count(ended), " ", outcome))
    if not born:
        return listed(said)
    lived = counted(count(born), "lifecycle")
    if said:
        return lived + words(": ", listed(said), ".")
    return lived + words(", none of which has ended." if len(born) > 1 else ", still open.")


def _of_worth(record: Record, rows: list[dict[str, Any]]) -> Words:
    if not rows:
        return Words()
    events = dict(record.audit)
    asked = [f"{AUDIT}#{row['line']}/event" for row in rows]
    passed = [
        f"{AUDIT}#{row['line']}/{'passed' if 'passed' in events[row['line']] else 'target'}"  # where it was adopted
        for row in rows
        if row["passed"]
    ]
    said = counted(count(asked), "comparison")
    return said + (words("; in ", count(passed), " the graft passed.") if passed else words("; no graft passed."))


def _of_lattice(record: Record, packed: dict[str, Any] | None) -> Words:
    if packed is None:
        return Words()
    said = _sensed(record)
    if packed["left_out"]:
        said += words(" To keep this page small, ", " and ".join(packed["left_out"]), " is left out.")
    if packed["every"] > 1:
        said += words(" To keep this page small, not every boundary is shown.")
    return said


def _sensed(record: Record) -> Words:
    """What the picture of seeds shows, of how many of them and how often."""
    measured = [one for one in record.telemetry if _is_measured(one[1])]
    if not measured:
        config = record.config or {}
        said = words("Nothing was measured")
        if config.get("growth", {}).get("telemetry_rows") == 0:
            rows = Document(f"{CONFIG}#", config).cite("growth", "telemetry_rows")
            said += words(" (", Name("telemetry_rows"), " is ", rows, ")")
        else:
            said += words(", as where ", Name("telemetry_rows"), " is zero")
        return said + words("; only the states of seeds are shown.")
    said, models = words("What the seeds"), record.of("model")
    if models:
        model = line(AUDIT, models[0])
        seeds = [model.cite("places", index, "seeds") for index in range(len(model.content["places"]))]
        number = total(seeds, "number") if seeds else None
        if number is not None and record.of("rechunked"):
            said += words(", ", number, " of them before their number changed,")
        elif number is not None:
            said = words("What ", counted(number, "seed"))
    said += words(" sensed at ")
    if len(measured) < len(record.epochs):
        said += words(count([line(METRICS, one).source("step") for one in measured]), " of ")
    return said + words(_boundaries(max(measured, record.epochs, key=len)), ", with two digits.")


def _is_measured(event: Mapping[str, Any]) -> bool:
    return any(place.get(key) for place in event["places"].values() for key in MEASURES)
