"""The head of a page: what run it is, and the numbers that matter most."""

import json
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from esper.observability.beginning import trained_weights
from esper.observability.cited import Cited, Document, Name, Words, line, total, words
from esper.observability.files import AUDIT, CONFIG, METRICS, RESULT
from esper.observability.measures import metric_name
from esper.observability.record import Record
from esper.observability.shapes import is_number
from esper.observability.verdict import deciding, gains

Figure = dict[str, Any]


def title(record: Record) -> str:
    """Task and host, or the directory's name where neither is known."""
    known = {**(record.config or {}), **(record.result or {})}
    names = [known.get("task", known.get("data")), known.get("host")]
    return ", ".join(str(name) for name in names if name is not None) or record.directory.absolute().name


def facts(record: Record) -> list[dict[str, Any]]:
    """Seed, the weights that it began with if they were trained, status, date."""
    told = []
    config = record.config or {}
    if record.result is not None and is_number(record.result.get("seed")):
        told.append({"label": "seed", "value": Document(f"{RESULT}#", record.result).cite("seed", spec="plain")})
    elif is_number(config.get("seed")):
        told.append({"label": "seed", "value": Document(f"{CONFIG}#", config).cite("seed", spec="plain")})
    if (weights := trained_weights(record.result or config)) is not None:
        told.append({"label": "began with", "value": Name(PurePath(weights).name)})
    if flags := record.of("flags"):
        told.append({"label": "flags", "value": _flags(line(AUDIT, flags[-1]))})
    told.append({"label": "status", "value": record.status})
    begun = next((line(AUDIT, one) for one in record.audit if is_number(one[1].get("time"))), None)
    if begun is not None:
        told.append({"label": "begun", "value": _date(begun)})
    return told


def figures(record: Record) -> list[Figure]:
    """Three or four numbers that matter most."""
    if record.result is not None:
        return _finished_figures(record.result)
    ended = record.of("finished")
    return _trained_figures(record, line(AUDIT, ended[-1])) if ended else _unfinished_figures(record)


def _finished_figures(result: dict[str, Any]) -> list[Figure]:
    document, grown = Document(f"{RESULT}#", result), result["rows"]["grown"]
    shown = []
    if grown["test_metric"] is not None:
        value = document.cite("rows", "grown", "test_metric", spec="percent")
        shown.append(_figure(value, f"test {result.get('metric') or 'accuracy'}"))
    elif grown["test_loss"] is not None:
        shown.append(_figure(document.cite("rows", "grown", "test_loss", spec="loss"), "test loss"))
    if result["rows"]["host_on"] is not None and (gain := deciding(gains(result, "host_on"))) is not None:
        spec = "nats" if gain.is_loss else "points"
        ends = None
        if gain.low is not None and gain.high is not None:
            ends = words(gain.low.written(spec), " to ", gain.high.written(spec))
        label = ", ".join(filter(None, (f"gain in {gain.measure} over the host trained on", gain.unit)))
        shown.append(_figure(gain.mean.written(spec), label, ends))
    before = result["rows"]["host_on"]
    note = None
    if before is not None:
        note = words("the host has ", document.cite("rows", "host_on", "parameters"))
    shown.append(_figure(document.cite("rows", "grown", "parameters"), "parameters", note))
    spent = document.cite("probe_flops", spec="flops")
    note = words(spent, " of them for trying") if result["probe_flops"] else None
    shown.append(_figure(document.cite("rows", "grown", "train_flops", spec="flops"), "training FLOPs", note))
    return shown


def _trained_figures(record: Record, ended: Document) -> list[Figure]:
    shown = [_figure(ended.cite("step"), "steps"), *_held_out(record, ended, "select_loss", "select_metric")]
    return shown + _cost(ended.cite("train_flops", spec="flops"))


def _unfinished_figures(record: Record) -> list[Figure]:
    if not record.epochs:
        return []
    last = line(METRICS, record.epochs[-1])
    shown = [_figure(last.cite("step"), "steps"), *_held_out(record, last, "val_loss", "val_metric")]
    spent = [last.cite(name) for name in ("run_flops", "arm_flops", "judging_flops")]
    return shown + _cost(total(spent, "flops"))


def _cost(flops: Cited) -> list[Figure]:
    """Nothing where FLOPs were not counted."""
    return [_figure(flops, "training FLOPs")] if flops.value else []


def _held_out(record: Record, event: Document, loss: str, metric: str) -> list[Figure]:
    shown = ((loss, "loss", "held-out loss"), (metric, "percent", f"held-out {metric_name(record) or 'accuracy'}"))
    return [
        _figure(event.cite(field, spec=spec), label) for field, spec, label in shown if event.content[field] is not None
    ]


def _figure(value: Any, label: str, note: Words | None = None) -> Figure:
    return {"value": value, "label": label, "note": note}


def _flags(event: Document) -> Words:
    """For which model, and what is off for it."""
    off = [name for name, flag in event.content["flags"].items() if not flag["is_on"]]
    return words("off for ", Name(event.content["model_id"]), f": {', '.join(off)}" if off else "")


def _date(event: Document) -> Markup:
    """The day of an event, citing its time."""
    value = event.content["time"]
    try:
        day = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d")
    except (OverflowError, OSError, ValueError):  # a number that is no time
        day = "not known"
    cited = json.dumps(["value", event.source("time")])
    return Markup('<data value="{}" data-from="{}" data-spec="date">{}</data>').format(json.dumps(value), cited, day)
