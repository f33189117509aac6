"""Why a gate stayed shut, in plain words. The log says it in terms: ``metric_gain is -0.0033, below 0``."""

import re
from collections.abc import Sequence

from esper.observability.cited import Cited, Document, Name, Words, listed, quoted, words
from esper.observability.files import CONFIG
from esper.observability.measures import metric_name
from esper.observability.record import Record
from esper.observability.shapes import is_number

_TERM = re.compile(r"(\w+) is (?:missing|(\S+), below (\S+))")

_ITS = {"it": "it", "its": "its", "was": "was"}
_THEIRS = {"it": "they", "its": "their", "was": "were"}


def why_shut(record: Record, reason: str, measured: Sequence[Document], *, of_several: bool = False) -> Words:
    """The end of a sentence: why a gate refused, or the words of the log where they are no terms of a gate.

    Args:
        record: of the run.
        reason: as the log gives it; terms are parted by semicolons.
        measured: where the values of the terms may be cited from, by name.
        of_several: whether the gate judged several grafts together.
    """
    found = [_TERM.fullmatch(part) for part in reason.split("; ")]
    if not any(one is not None and one[1] in _SAID for one in found):
        return quoted(reason)
    terms = zip(found, reason.split("; "), strict=True)
    whose = (_THEIRS if of_several else _ITS) | {"metric": metric_name(record) or "accuracy"}
    return listed([_term(record, one, part, measured, whose) for one, part in terms]) + words(".")


def asked(record: Record) -> Cited | None:
    """The z-score that the gates ask for."""
    config = record.config or {}
    growth = config.get("growth", {})
    if not is_number(growth.get("gate_z")):
        return None
    return Document(f"{CONFIG}#", config).cite("growth", "gate_z", spec="plain")


def _term(
    record: Record, term: re.Match[str] | None, part: str, measured: Sequence[Document], whose: dict[str, str]
) -> Words:
    if term is None or term[1] not in _SAID:
        return words(Name(part))
    name, value, low = term.groups()
    if value is None:
        return words(_MISSING.get(name, _SAID[name]).format_map(whose))
    number = _cited(name, value, measured)
    if name == "metric_gain" and number is not None:
        apart = number.written("points_apart")
        return words(f"{whose['its']} {whose['metric']} was ", apart, f" points below {whose['its']} twin's")
    if name not in _SCORES or number is None:
        return words(_SAID[name].format_map(whose))
    said = "{it} {was} no better than {its} twin" if name == "twin_z" and number.value <= 0 else _SAID[name]
    least = asked(record)
    takes = words("; it takes at least ", least) if least is not None and f"{least.value:g}" == low else words()
    return words(said.format_map(whose), " (z = ", number.written("z"), takes, ")")


def _cited(name: str, text: str, measured: Sequence[Document]) -> Cited | None:
    """The value that the log has rounded."""
    for document in measured:
        value = document.content.get(name)
        if is_number(value) and f"{value:.4g}" == text:
            return document.cite(name)
    return None


_SCORES = ("twin_z", "ablation_z")

_SAID = {
    "twin_z": "{its} lead over {its} twin was not clear enough",
    "lead": "{its} lead over {its} twin in as many steps was too small",
    "metric_gain": "{its} {metric} was below {its} twin's",
    "ablation_z": "it could not be shown that the run is worse without it",
    "variation": "what it added was nearly the same for every input, as a bias would be",
    "confirm_margin": "what it is worth was not confirmed on the samples kept for that",
    "is_finite": "{its} values were not finite",
}
"""What it means that a value is too small."""

_MISSING = {
    "twin_z": "{it} could not be compared with {its} twin",
    "metric_gain": "{its} {metric} was not measured",
    "ablation_z": "the run without it could not be compared",
}
"""What it means that a value is missing, where that is something else."""
