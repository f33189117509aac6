"""What was tried and refused, and why."""

from collections.abc import Sequence
from typing import Any

from esper.observability.cited import Document, Name, Words, count, counted, line, quoted, sentences, words
from esper.observability.files import AUDIT, Numbered
from esper.observability.gate_words import asked, why_shut
from esper.observability.grown import SHOWN, graft, reports, several
from esper.observability.measures import metric_name
from esper.observability.record import Record
from esper.observability.shapes import is_text

REASONS = {
    "keep gate refused": "it could not be shown that the run is worse without it",
    "lost_round": "it lost its round",
    "timed_out": "it stayed in one state for too long",
    "non-finite values": "its values were not finite",
    "the run was finished": "the run was over before it could be judged",
    "the run went back to before this graft": "the run did not recover and went back to before it",
}
"""Why a lifecycle ended, in words; other reasons are quoted."""

NOTHING = "Nothing is tried: "
"""How a note begins that says why."""

_LOST = ("lost_round", "lost to its twin")
_ENDED = {"CULLED": "taken out", "CANCELLED": "taken back", "ROLLED_BACK": "lost in a rollback"}


def what_was_tried(record: Record) -> list[Words]:
    """Rounds, live trials, grafts that did not stay, and commands that were refused: one paragraph each."""
    rounds = [_round(record, line(AUDIT, one)) for one in record.of("round_begun")]
    trials = [_trial(record, line(AUDIT, one)) for one in record.of("trial_begun")]
    told = [_first(rounds), _first(trials), _first(_lost(record)), _refused(record)]
    if not rounds and not trials and not reports(record):
        told.insert(0, _why_nothing(record))
    return [one for one in told if one]


def _first(found: Sequence[Words]) -> Words:
    more = [words("There were more; the log has all of them.")] if len(found) > SHOWN else []
    return sentences([*found[:SHOWN], *more])


def _why_nothing(record: Record) -> Words:
    config = record.config or {}
    growth = config.get("growth", {})
    if config.get("policy") == "never":
        return words("Nothing was tried: the policy is ", Name("never"), ".")
    if growth.get("max_rounds") == 0:
        return words("Nothing was tried: ", Name("max_rounds"), " allows no round.")
    if any(event["target"] == "GERMINATED" for _, event in record.of("veto", "refused")):
        return words("Nothing was tried: every candidate was vetoed or refused.")
    for note in record.of("note"):
        if str(note[1]["text"]).startswith(NOTHING):
            return words(str(note[1]["text"]).replace("is tried", "was tried", 1))
    if record.status == "unfinished":
        return words("Nothing has been tried so far.")
    if record.faults_of(AUDIT):
        return Words()
    return words("Nothing was tried: the controller asked for no candidate while growth was allowed.")


def _round(record: Record, begun: Document) -> Words:
    number, candidates = begun.content["round"], begun.content["candidates"]
    said = words("Round ", begun.cite("round"), ", from step ", begun.cite("step"), ", had ")
    said += _candidates(begun)
    ended = _of_number(record.of("round_ended"), "round", number)
    if ended is None:
        return said + _open_end(record)
    arms = [line(AUDIT, one) for one in record.of("arm_ended") if one[1]["round"] == number]
    numbers = {one["lifecycle"] for one in candidates}
    left_out = [line(AUDIT, one).source("reason") for one in record.of("transition") if _was_left_out(one[1], numbers)]
    adopted = ended.content["adopted"]
    if adopted is not None:
        said += words(": ", graft(adopted), " beat the twin and was adopted")
        passed = [one.source("passed") for one in arms if one.content["passed"]]
        if len(passed) > 1:
            said += words(f", the {_choice(record)} of ", count(passed), " that did")
        if left_out:
            said += words("; ", count(left_out), " was not tried" if len(left_out) == 1 else " were not tried")
        return said + words(".")
    if ended.content["reason"] != "no candidate beat the twin":
        return said + words(", but adopted none: ", why_shut(record, ended.content["reason"], arms))
    if len(candidates) == 1:
        said += words(", and it did not beat its twin, the run without it.")
    else:
        said += words(", and none beat its twin, the run without it.")
    if left_out:
        said += words(" Those that were tried were no better than it, so that ", count(left_out))
        said += words(" was not tried." if len(left_out) == 1 else " were not tried.")
    if arms and all(one.content["gate_loss"] is None for one in arms):
        is_twin_too = all(one.content["twin_gate_loss"] is None for one in arms)
        whose = "No loss on the gate samples was finite" if is_twin_too else "The loss of no candidate was finite"
        return said + words(f" {whose}.")
    nearest = max((one for one in arms if one.content["twin_z"] is not None), key=_z, default=None)
    return said if nearest is None else said + words(" ") + _nearest(record, nearest, candidates)


def _choice(record: Record) -> str:
    growth = (record.config or {}).get("growth", {})
    return "best" if growth.get("choice") == "best" else "first"


def _was_left_out(event: dict[str, Any], numbers: set[int]) -> bool:
    return event["lifecycle"] in numbers and is_not_tried(event["reason"])


def is_not_tried(reason: Any) -> bool:
    """Whether a lifecycle ended before it had an arm, as its reason tells."""
    return is_text(reason) and reason.startswith("not tried")


def _nearest(record: Record, arm: Document, candidates: list[dict[str, Any]]) -> Words:
    """How far the best of the refused was from passing."""
    lifecycle = arm.content.get("lifecycle")
    known = next((graft(one) for one in candidates if one["lifecycle"] == lifecycle), words(Name(arm.content["arm"])))
    said = words("The nearest was ", known)
    if arm.content["gate_loss"] is not None and arm.content["twin_gate_loss"] is not None:
        said = said + words(" with") if len(candidates) > 1 else words("It had")
        said += words(" a loss of ", arm.cite("gate_loss", spec="loss"), " on the gate samples against ")
        said += words(arm.cite("twin_gate_loss", spec="loss"))
    z, least = arm.cite("twin_z", spec="z"), asked(record)
    said += words(" (z = ", z)
    if least is not None and z.value < least.value:
        return said + words("; it takes at least ", least, ").")
    metric_gain = arm.content["metric_gain"]
    if metric_gain is not None and metric_gain < 0:
        apart = arm.cite("metric_gain", spec="points_apart")
        return said + words(f"), but its {metric_name(record) or 'accuracy'} was ", apart, " points lower.")
    if is_text(verdict := arm.content.get("verdict")) and verdict != "passed":
        return said + words("), but ", why_shut(record, verdict, [arm]))
    return said + words(").")


def _trial(record: Record, begun: Document) -> Words:
    said = words("Live trial ", begun.cite("trial"), ", from step ", begun.cite("step"), ", grew ")
    said += _candidates(begun) + words(" in the run itself")
    ended = _of_number(record.of("trial_ended"), "trial", begun.content["trial"])
    if ended is None:
        return said + _open_end(record)
    adopted, reason = ended.content["adopted"], ended.content["reason"]
    if adopted:
        return said + words("; ", several([graft(one) for one in adopted]), " stayed: ", quoted(reason))
    of_several = len(begun.content["candidates"]) > 1
    return said + words("; nothing stayed: ", why_shut(record, reason, [ended], of_several=of_several))


def _open_end(record: Record) -> Words:
    is_over = record.status != "unfinished" or bool(record.faults_of(AUDIT))
    return words("; how it ended is not in the log." if is_over else "; it is under way.")


def _candidates(begun: Document) -> Words:
    candidates = begun.content["candidates"]
    number = count([begun.source("candidates", index) for index in range(len(candidates))])
    return words(counted(number, "candidate"), " (", several([graft(one) for one in candidates]), ")")


def _lost(record: Record) -> list[Words]:
    """Lifecycles that ended neither as a fossil nor by a lost comparison."""
    said = []
    for one in reports(record):
        outcome, reason = one.content["outcome"], one.content["reason"]
        if outcome == "FOSSILIZED" or reason in _LOST or is_not_tried(reason):
            continue
        gates = [Document(one.source("gates", name), values) for name, values in _gates(one).items()]
        why = words(f"{REASONS[reason]}.") if reason in REASONS else why_shut(record, reason, gates)
        how = _ENDED.get(outcome, outcome)
        said.append(graft(one.content) + words(f" was {how} at step ", one.cite("ended_step"), ": ", why))
    return said


def _gates(report: Document) -> dict[str, dict[str, Any]]:
    return {name: values for name, values in report.content["gates"].items() if isinstance(values, dict)}


def _refused(record: Record) -> Words:
    """Commands that were not carried out; what the session refuses itself is told by the outcome."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in record.of("veto", "refused"):
        if one[1]["who"] != "session":
            key = (one[1]["event"], one[1]["reason"])
            by_reason.setdefault(key, []).append(line(AUDIT, one).source("reason"))
    said = []
    for (event, reason), sources in by_reason.items():
        how = "vetoed" if event == "veto" else "refused"
        commands = counted(count(sources), "command was", "commands were")
        said.append(words(commands, f" {how}: ", quoted(reason)))
    return _first(said)


def _of_number(found: list[Numbered], key: str, number: int) -> Document | None:
    return next((line(AUDIT, one) for one in found if one[1][key] == number), None)


def _z(arm: Document) -> float:
    return float(arm.content["twin_z"])
