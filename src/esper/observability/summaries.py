"""The head of a page and the sentences beside its pictures: what a reader gets who sees no picture."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from esper.observability.cited import Document, Name, Words, count, line, listed, total, words
from esper.observability.lifecycles import ENDINGS, lifecycles
from esper.observability.record import AUDIT, CONFIG, METRICS, RESULT, Numbered, Record
from esper.observability.shapes import is_number
from esper.observability.verdict import gains

Figure = dict[str, Any]


def title(record: Record) -> str:
    """Task and host, or the directory's name where neither is known."""
    known = {**(record.config or {}), **(record.result or {})}
    names = [known.get("task", known.get("data")), known.get("host")]
    return ", ".join(str(name) for name in names if name is not None) or record.directory.absolute().name


def facts(record: Record) -> list[dict[str, Any]]:
    """Seed, status, date."""
    told = []
    config = record.config or {}
    if record.result is not None and is_number(record.result.get("seed")):
        told.append({"label": "seed", "value": Document(f"{RESULT}#", record.result).cite("seed", spec="plain")})
    elif is_number(config.get("seed")):
        told.append({"label": "seed", "value": Document(f"{CONFIG}#", config).cite("seed", spec="plain")})
    told.append({"label": "status", "value": record.status})
    begun = next((line(AUDIT, one) for one in record.audit if is_number(one[1].get("time"))), None)
    if begun is not None:
        told.append({"label": "begun", "value": _date(begun)})
    return told


def figures(record: Record) -> list[Figure]:
    """Three or four numbers that matter most."""
    return _unfinished_figures(record) if record.result is None else _finished_figures(record.result)


def _finished_figures(result: dict[str, Any]) -> list[Figure]:
    document, grown = Document(f"{RESULT}#", result), result["rows"]["grown"]
    shown = []
    if grown["test_metric"] is not None:
        value = document.cite("rows", "grown", "test_metric", spec="percent")
        shown.append(_figure(value, f"test {result.get('metric') or 'accuracy'}"))
    elif grown["test_loss"] is not None:
        shown.append(_figure(document.cite("rows", "grown", "test_loss", spec="loss"), "test loss"))
    if result["rows"]["host_on"] is not None and (found := gains(result, "host_on")):
        first = found[0]
        unit, spec = ("nats", "nats") if first.is_loss else ("points", "points")
        ends = None
        if first.low is not None and first.high is not None:
            ends = words(first.low.written(spec), " to ", first.high.written(spec))
        label = f"gain in {first.measure} over the host trained on, {unit}"
        shown.append(_figure(first.mean.written(spec), label, ends))
    before = result["rows"]["host_on"]
    note = None
    if before is not None:
        note = words("the host has ", document.cite("rows", "host_on", "parameters"))
    shown.append(_figure(document.cite("rows", "grown", "parameters"), "parameters", note))
    spent = document.cite("probe_flops", spec="flops")
    note = words(spent, " of them for trying") if result["probe_flops"] else None
    shown.append(_figure(document.cite("rows", "grown", "train_flops", spec="flops"), "training FLOPs", note))
    return shown


def _unfinished_figures(record: Record) -> list[Figure]:
    if not record.epochs:
        return []
    last = line(METRICS, record.epochs[-1])
    shown = [_figure(last.cite("step"), "steps")]
    if last.content["val_loss"] is not None:
        shown.append(_figure(last.cite("val_loss", spec="loss"), "held-out loss"))
    if last.content["val_metric"] is not None:
        shown.append(_figure(last.cite("val_metric", spec="percent"), "held-out accuracy"))
    spent = [last.cite(name) for name in ("run_flops", "arm_flops", "judging_flops")]
    return [*shown, _figure(total(spent, "flops"), "training FLOPs")]


def why_empty(record: Record, tables: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str | None]:
    """Why a section of the page has nothing to show; None where it has."""
    unread = "The log does not tell: this run was recorded by an older version, or the line was lost."
    reasons = {
        "rows": "There is no result yet: rows and controls are measured at the end of a run by esper run.",
        "curves": "No boundary was reached yet, so there is nothing to draw.",
        "anatomy": unread,
        "lanes": "No seed has germinated.",
        "worth": "No graft has been compared with its twin yet.",
        "lattice": "What the seeds sensed was not recorded.",
        "reports": "No lifecycle has ended.",
        "refusals": "Every command was carried out.",
        "settings": "There is no configuration: the run was not started by esper run, or its file was lost.",
    }
    is_there = {**tables, **content, "curves": content["curves"]["run"]["steps"]}
    return {name: None if is_there[name] else reason for name, reason in reasons.items()}


def summaries(record: Record, content: Mapping[str, Any]) -> dict[str, Words]:
    """One or two sentences for every picture."""
    return {
        "curves": _of_curves(record),
        "anatomy": _of_anatomy(record),
        "lanes": _of_lanes(record),
        "worth": _of_worth(content["worth"]),
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
    return words(count([line(METRICS, one).source("step") for one in lines]), " boundaries")


def _of_anatomy(record: Record) -> Words:
    models = record.of("model")
    if not models:
        return Words()
    model = line(AUDIT, models[0])
    places = [model.source("places", index) for index in range(len(model.content["places"]))]
    said = words("The host is a ", Name(model.content["type"]), " of ", model.cite("parameters"), " parameters with ")
    said += words(count(places), " places at which it could grow. ")
    kept = [one.label for one in lifecycles(record) if one.outcome == "FOSSILIZED"]
    if not kept:
        return said + words("No graft was kept." if record.result is not None else "No graft has been kept so far.")
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
    return (
        words(count(born), " lifecycles" if len(born) > 1 else " lifecycle", ": ", listed(said), ".")
        if said
        else (
            words(count(born), " lifecycles, none of which has ended." if len(born) > 1 else " lifecycle, still open.")
        )
    )


def _of_worth(rows: list[dict[str, Any]]) -> Words:
    if not rows:
        return Words()
    asked = [f"{AUDIT}#{row['line']}/event" for row in rows]
    passed = [f"{AUDIT}#{row['line']}/event" for row in rows if row["passed"]]
    said = words(count(asked), " comparisons" if len(asked) > 1 else " comparison")
    return said + (words("; in ", count(passed), " the graft passed.") if passed else words("; no graft passed."))


def _of_lattice(record: Record, packed: dict[str, Any] | None) -> Words:
    if packed is None:
        return Words()
    said = words("What the seeds sensed at ", _boundaries(record.telemetry))
    models = record.of("model")
    if models:
        model = line(AUDIT, models[0])
        seeds = [model.cite("places", index, "seeds") for index in range(len(model.content["places"]))]
        said += words(", at first ", total(seeds, "number"), " seeds")
    said += words(". Values are rounded to two digits.")
    if packed["left_out"]:
        said += words(" To keep this file small, ", " and ".join(packed["left_out"]), " is left out.")
    if packed["every"] > 1:
        said += words(" To keep this file small, not every boundary is shown.")
    return said


def _figure(value: Any, label: str, note: Words | None = None) -> Figure:
    return {"value": value, "label": label, "note": note}


def _date(event: Document) -> Markup:
    """The day of an event, citing its time."""
    value = event.content["time"]
    try:
        day = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d")
    except (OverflowError, OSError, ValueError):  # a number that is no time
        day = "not known"
    cited = json.dumps(["value", event.source("time")])
    return Markup('<data value="{}" data-from="{}">{}</data>').format(json.dumps(value), cited, day)
