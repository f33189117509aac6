"""What grew: the finished lifecycles of a run, where they can be cited from, and those that are still open."""

from typing import Any

from esper.observability.cited import Document, Name, Words, counted, line, listed, sentences, words
from esper.observability.files import AUDIT, RESULT
from esper.observability.labels import SPOKEN, seed_label
from esper.observability.record import Record

SHOWN = 6
"""So many of a kind are told one by one."""


def reports(record: Record) -> list[Document]:
    """The field reports, from the result or, while there is none, from the log."""
    if record.result is not None:
        return result_reports(record.result)
    return [line(AUDIT, one) for one in record.of("field_report")]


def result_reports(result: dict[str, Any]) -> list[Document]:
    """The field reports of a result."""
    return [Document(f"{RESULT}#/lifecycles/{index}", one) for index, one in enumerate(result["lifecycles"])]


def fossils(found: list[Document]) -> list[Document]:
    """Those whose grafts stayed."""
    return [one for one in found if one.content["outcome"] == "FOSSILIZED"]


def adopted_at(record: Record, lifecycle: int) -> Document | None:
    """The line that tells that the graft was adopted."""
    for one in record.of("transition"):
        if one[1]["lifecycle"] == lifecycle and one[1]["arm"] is None and one[1]["target"] == "FINE_TUNING":
            return line(AUDIT, one)
    return None


def graft(fields: dict[str, Any]) -> Words:
    """``bottleneck_mlp`` on ``0``, seed 3."""
    if fields["layer_id"] in SPOKEN and not isinstance(fields["seed_id"], int):
        return words(Name(fields["blueprint"]), f" on {SPOKEN[fields['layer_id']]}")
    return words(Name(fields["blueprint"]), " on ", Name(seed_label(fields["layer_id"], fields["seed_id"])))


def several(found: list[Words]) -> Words:
    """The first of them by name, and how many more there are."""
    if len(found) <= SHOWN:
        return listed(found)
    return words(listed(found[:SHOWN], last=", "), " and others")


def what_grew(record: Record) -> Words:
    """Where, what and when; empty if nothing did."""
    found = reports(record)
    kept, ended = fossils(found), {one.content["lifecycle"] for one in found}
    said = [_life(record, one) for one in kept[:SHOWN]]
    if len(kept) > SHOWN:
        said.append(words("And more: the table of lifecycles has all of them."))
    latest = {one[1]["lifecycle"]: line(AUDIT, one) for one in record.of("transition") if one[1]["arm"] is None}
    for number, event in latest.items():
        if number is not None and number not in ended and event.content["target"] == "FINE_TUNING":
            place = Name(seed_label(event.content["layer_id"], event.content.get("seed_id", "all")))
            adopted = words("A graft on ", place, " was adopted at step ", event.cite("step"))
            said.append(adopted + words(" and has yet to prove that it may stay."))
    if kept and record.result is not None:
        said.append(_size(record, record.result))
    return sentences(said)


def _life(record: Record, report: Document) -> Words:
    adopted = adopted_at(record, report.content["lifecycle"])
    said = graft(report.content) + words(" has ", counted(report.cite("parameters"), "parameter"))
    said += words(": it began at step ", report.cite("born_step"))
    if adopted is not None:
        said += words(", was adopted at step ", adopted.cite("step"))
    return said + words(" and became a fossil at step ", report.cite("ended_step"), ".")


def _size(record: Record, result: dict[str, Any]) -> Words:
    now = Document(f"{RESULT}#", result).cite("rows", "grown", "parameters")
    models = record.of("model")
    if not models:
        return words("The network now has ", counted(now, "parameter"), ".")
    before = line(AUDIT, models[0]).cite("parameters")
    return words("The host had ", counted(before, "parameter"), ", the network now has ", now, ".")
