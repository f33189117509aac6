"""What the training of a run took, in words."""

from esper.observability.cited import Cited, Document, Words, line, total, words
from esper.observability.files import AUDIT, METRICS, RESULT
from esper.observability.grown import reports
from esper.observability.record import Record
from esper.observability.verdict import trying


def cost(record: Record) -> Words:
    """Training FLOPs, and how much of them went into arms and judging; empty if the record does not tell."""
    if record.result is not None:
        document = Document(f"{RESULT}#", record.result)
        said = words("Training took ", document.cite("rows", "grown", "train_flops", spec="flops"), "FLOPs and ")
        said += words(document.cite("rows", "grown", "seconds", spec="seconds"))
        share = trying(record.result)
        if share is None:
            return said + words(".")
        spent = document.cite("probe_flops", spec="flops")
        return said + words("; ", spent, "FLOPs of that (", share, ") went into arms and judging.")
    if _is_uncounted(record):
        return words("FLOPs were not counted.")
    said = _whole(record)
    if not said:
        return said
    if not record.epochs:
        return said + words(".")
    _, arm, judging = _last_boundary(record)
    if not reports(record) and not arm.value:
        return said + words(".")
    return said + words(", ", total([arm, judging], "flops"), "FLOPs of that in arms and judging.")


def _whole(record: Record) -> Words:
    """All training, at its end or so far; empty if the record does not tell."""
    ended = record.of("finished")
    if ended:
        return words("Training took ", line(AUDIT, ended[-1]).cite("train_flops", spec="flops"), "FLOPs")
    if not record.epochs:
        return Words()
    flops = total(_last_boundary(record), "flops")
    if record.status == "unfinished":
        return words("Training has taken ", flops, "FLOPs so far")
    return words("To the last boundary that is known, training took ", flops, "FLOPs")


def _is_uncounted(record: Record) -> bool:
    """Whether training went on without counting FLOPs: all of them are 0 then."""
    if ended := record.of("finished"):
        return not ended[-1][1]["train_flops"]
    return bool(record.epochs) and not total(_last_boundary(record), "flops").value


def _last_boundary(record: Record) -> list[Cited]:
    """FLOPs of the run, of arms and of judging, by then."""
    last = line(METRICS, record.epochs[-1])
    return [last.cite(f"{kind}_flops") for kind in ("run", "arm", "judging")]
