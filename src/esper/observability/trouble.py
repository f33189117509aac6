"""Emergencies, rollbacks, faults and recoveries, in words."""

from esper.observability.cited import Document, Name, Words, line, sentences, words
from esper.observability.files import AUDIT
from esper.observability.grown import SHOWN
from esper.observability.labels import place_label
from esper.observability.record import Record


def what_went_wrong(record: Record) -> Words:
    """One sentence for each; empty if all went well."""
    told = {"emergency": _emergency, "rollback": _rollback, "fault": _fault, "recovery": _recovery}
    found = record.of(*told)
    said = [told[one[1]["event"]](line(AUDIT, one)) for one in found[:SHOWN]]
    if len(found) > SHOWN:
        said.append(words("There was more; the log has all of it."))
    return sentences(said)


def _at(event: Document) -> Words:
    return words("At step ", event.cite("step"), " ")


def _emergency(event: Document) -> Words:
    said = _at(event) + words("there was an emergency (", Name(event.content["reason"]), "); ")
    if event.content["response"] != "cull":
        did = {"lower_lr": "went back, with lower learning rates from then on", "stop": "stopped"}
        return said + words(f"the run {did.get(event.content['response'], 'went back')}.")
    place = Name(place_label(event.content.get("layer_id") or ""))
    return said + words("the graft on ", place, " was at fault and taken out.")


def _rollback(event: Document) -> Words:
    said = _at(event) + words("the run went back to its state after step ", event.cite("to_step"))
    if not event.content["reason"].startswith("emergency"):
        said += words(" (", Name(event.content["reason"]), ")")
    if event.content["lifecycles"]:
        return said + words("; what was adopted since is gone.")
    return said + words("; nothing was lost." if event.content["step"] == event.content["to_step"] else ".")


def _fault(event: Document) -> Words:
    what = "a graft" if event.content["lifecycles"] else "a fossil"
    return _at(event) + words(
        f"{what} on ", Name(place_label(event.content["layer_id"])), " gave values that are not finite."
    )


def _recovery(event: Document) -> Words:
    if event.content["recovered"]:
        return _at(event) + words("the run had recovered from the removal of a graft.")
    return _at(event) + words(
        "the run had not recovered from the removal of a graft and went back to before that graft."
    )
