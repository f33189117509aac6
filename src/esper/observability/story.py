"""What happened in a run, in plain words."""

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from esper.observability.beginning import beginning
from esper.observability.cited import (
    Cited,
    Document,
    Name,
    Words,
    counted,
    line,
    listed,
    quoted,
    ratio,
    sentences,
    words,
)
from esper.observability.cost import cost
from esper.observability.files import AUDIT, CONFIG, METRICS
from esper.observability.grown import what_grew
from esper.observability.record import Record
from esper.observability.shapes import is_whole
from esper.observability.tried import what_was_tried
from esper.observability.trouble import what_went_wrong
from esper.observability.verdict import comparison, gains, headline, trying

CONTROLS = ("host_on", "static")


class Story(NamedTuple):
    """What happened in a run. Everything prints as text, and is HTML in a template.

    Attributes:
        headline: one short sentence: the verdict, or how far the run came.
        paragraphs: the comparison with the controls, or how to go on; the trained weights that it began with, if any;
            what grew; what was tried and refused; what went wrong; what growth cost; what was not measured.
    """

    headline: Words
    paragraphs: list[Words]


def story(record: Record) -> Story:
    """What happened. Notes of the run and faults of its record are no part of it."""
    headline, first = _unfinished(record) if record.result is None else _finished(record.result)
    told = [first, beginning(record.result or record.config or {}), what_grew(record), *what_was_tried(record)]
    told += [what_went_wrong(record), cost(record), _not_measured(record)]
    return Story(headline, [one for one in told if one])


def verdict(result: Mapping[str, Any]) -> str:
    """Whether growth paid, as plain text, from the content of ``result.json`` alone."""
    content = dict(result)
    share = trying(content)
    spent = [] if share is None else [words("Trying took ", share, " of the training FLOPs.")]
    return str(sentences([headline(content), *comparison(content), beginning(content), *spent]))


def _finished(result: dict[str, Any]) -> tuple[Words, Words]:
    is_compared = result["rows"]["host_on"] is not None or result["rows"]["grown"]["test_loss"] is None
    return headline(result), sentences(comparison(result)) if is_compared else Words()


def _unfinished(record: Record) -> tuple[Words, Words]:
    """How far a run without a result came, and how to go on: one short sentence, and a paragraph."""
    if record.status == "damaged":
        return words("The run has ended, but its result cannot be read: what growth was worth is not known."), Words()
    if not record.has_begun:
        return words("The run has not begun yet."), _how_to_go_on(record)
    ended, reached = record.of("finished"), _last(record)
    if ended and record.is_afar:
        return _trained(line(AUDIT, ended[-1])) + words("."), Words()
    if ended and record.is_of_own_loop:
        why = "What growth was worth is not known: controls are trained by "
        return _trained(line(AUDIT, ended[-1])) + words("."), words(why, Name("esper run"), " only.")
    if ended:
        done = [Name(name) for name in CONTROLS if record.progress.get("rows", {}).get(name) is not None]
        said = _controls(done, " is trained.", " are trained.") if done else Words()
        opening = _trained(line(AUDIT, ended[-1])) + words("; what growth was worth is not measured yet.")
    elif reached is None:
        opening, said = words("The run is not finished: it has not come to its first boundary."), Words()
    elif (planned := _all_steps(record, reached)) is not None:
        opening = words("All ", counted(planned, "step"), " are done")
        if record.is_of_own_loop:
            return opening + words("; call ", Name("session.finish()"), "."), _how_to_go_on(record)
        opening, said = opening + words(", but the run is not finished."), Words()
    else:
        opening = words("The run is not finished: its log reaches step ", reached.cite("step"))
        opening += words(*_of_planned(record, reached), ".")
        said = words("It is still running, or was interrupted.")
    return opening, sentences([said, _how_to_go_on(record)])


def _trained(ended: Document) -> Words:
    return words("The network is trained, at step ", ended.cite("step"))


def _last(record: Record) -> Document | None:
    """The line that tells of the latest step."""
    found = [line(METRICS, one) for one in record.epochs]
    found += [line(AUDIT, one) for one in record.audit if is_whole(one[1].get("step")) and one[1]["step"] > 0]
    return max(found, key=lambda one: int(one.content["step"]), default=None)


def _of_planned(record: Record, reached: Document) -> list[str | Cited | Words]:
    models = record.of("model")
    if models and models[0][1]["planned_steps"] > 0:
        planned = line(AUDIT, models[0]).cite("planned_steps")
        return [" of ", planned, " (", ratio(reached.cite("step"), planned), ")"]
    epochs = (record.config or {}).get("epochs")
    if record.epochs and is_whole(epochs):
        now = line(METRICS, record.epochs[-1]).cite("epoch")
        return [", epoch ", now, " of ", Document(f"{CONFIG}#", record.config).cite("epochs")]
    return []


def _all_steps(record: Record, reached: Document) -> Cited | None:
    """The planned steps, if all of them are done."""
    models = record.of("model")
    if not models or not 0 < models[0][1]["planned_steps"] <= reached.content["step"]:
        return None
    return line(AUDIT, models[0]).cite("planned_steps")


def _how_to_go_on(record: Record) -> Words:
    if record.is_afar:
        return Words()
    where = str(record.directory)
    if record.is_of_own_loop:
        load = Name(f"session.load({where + '/checkpoints'!r})")
        return words("If the session is gone, go on by loading its newest checkpoint: ", load, ".")
    return words("Go on with: ", Name(f"esper run --resume last --output {shlex.quote(where)}"))


def _not_measured(record: Record) -> Words:
    said: list[Words] = []
    result = record.result
    if result is not None:
        missing: dict[str, list[Name]] = {}
        for name in CONTROLS:
            if result["rows"][name] is None:
                missing.setdefault(result["reasons"].get(name, "no reason was recorded"), []).append(Name(name))
        for why, names in missing.items():
            said.append(_controls(names, " was not trained: ", " were not trained: ") + quoted(why))
        compared = [name for name in CONTROLS if result["rows"][name] is not None]
        if result["rows"]["grown"]["test_loss"] is not None and compared:
            found = [one for name in compared for one in gains(result, name)]
            if not any(one.low is not None for one in found):
                said.append(
                    words("No intervals were recorded, and one run is one seed: another may come out otherwise.")
                )
        if "metric" in result and result["metric"] is None:
            said.append(words("The task has no metric beside its loss."))
    elif record.status != "damaged" and record.config is not None and record.epochs:
        said.append(words("Test samples and controls come at the end of the run."))
    if record.epochs and not record.telemetry:
        said.append(words("What the seeds sensed was not recorded."))
    return sentences(said)


def _controls(names: list[Name], was: str, were: str) -> Words:
    one = len(names) == 1
    return words("The control " if one else "The controls ", listed(names), was if one else were)
