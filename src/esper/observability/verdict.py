"""Did growth pay? From the result alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esper.observability.cited import (
    SPECS,
    Cited,
    Document,
    Name,
    Words,
    count,
    counted,
    difference,
    listed,
    quoted,
    ratio,
    words,
)
from esper.observability.measures import loss_unit
from esper.observability.tried import is_not_tried

Side = Literal["better", "worse", "even", "unclear"]

INTERVALS = "In brackets: ninety-five percent intervals over the test samples. They say nothing about other seeds."


@dataclass(frozen=True)
class ControlGain:
    """By how much the grown network is better than a control in one measure.

    Args:
        measure: name of it: ``"test loss"``, or the task's metric.
        is_loss: whether it is a loss, of which less is better.
        unit: of its size; empty if it has none.
        mean: positive if the grown network is better.
        low, high: ends of the interval; None if there is none.
    """

    measure: str
    is_loss: bool
    unit: str
    mean: Cited
    low: Cited | None = None
    high: Cited | None = None

    @property
    def spec(self) -> str:
        """How its size is written."""
        return "nats_apart" if self.is_loss else "points_apart"

    @property
    def side(self) -> Side:
        """Which is better; ``"unclear"`` if the interval includes zero."""
        if self.low is not None and self.high is not None:
            if self.low.value <= 0 <= self.high.value:
                return "even" if self.low.value == self.high.value else "unclear"
            return "better" if self.low.value > 0 else "worse"
        if SPECS[self.spec](self.mean.value) == SPECS[self.spec](0.0):
            return "even"
        return "better" if self.mean.value > 0 else "worse"

    def size(self) -> Words:
        """2.3 points more accuracy."""
        unit = f" {self.unit}" if self.unit else ""
        return words(self.mean.written(self.spec), f"{unit} {self._more(self.mean)} {self.measure}")

    def told(self) -> Words:
        """2.3 points more accuracy (0.4 to 4.1 more)."""
        said = self.size()
        if self.low is None or self.high is None:
            return said
        low, high = (self.low, self.high) if abs(self.low.value) <= abs(self.high.value) else (self.high, self.low)
        if self._more(low) == self._more(high):
            return said + words(" (", low.written(self.spec), " to ", high.written(self.spec), f" {self._more(high)})")
        ends = (words(one.written(self.spec), f" {self._more(one)}") for one in (self.low, self.high))
        return said + words(" (", listed(list(ends), " to "), ")")

    def _more(self, value: Cited) -> str:
        return "less" if (value.value < 0) != self.is_loss else "more"


def result_document(result: dict[str, Any]) -> Document:
    """The result, to cite from."""
    return Document("result.json#", result)


def gains(result: dict[str, Any], control: str) -> list[ControlGain]:
    """What the grown network is better by: in the metric, if the task has one, and in test loss.

    From the paired intervals if the result has them, else from the rows alone. What is not finite is left out; a
    network whose loss is not finite is not compared at all.
    """
    document, found = result_document(result), list[ControlGain]()
    paired = (result.get("gains") or {}).get(control) or {}
    rows = result["rows"]
    if rows["grown"]["test_loss"] is None:
        return found
    for key, field in (("metric", "test_metric"), ("loss", "test_loss")):
        is_loss = key == "loss"
        metric = result.get("metric") or "accuracy"
        measure, unit = ("test loss", loss_unit(metric)) if is_loss else (metric, "points")
        interval = paired.get(key)
        if interval is not None and interval["mean"] is not None:
            path = ("gains", control, key)
            mean = document.cite(*path, "mean")
            low, high = (None if interval.get(end) is None else document.cite(*path, end) for end in ("low", "high"))
            found.append(ControlGain(measure, is_loss, unit, mean, low, high))
        elif rows["grown"][field] is not None and rows[control][field] is not None:
            grown, other = (document.cite("rows", name, field) for name in ("grown", control))
            mean = difference(other, grown) if is_loss else difference(grown, other)
            found.append(ControlGain(measure, is_loss, unit, mean))
    return found


def deciding(found: Sequence[ControlGain]) -> ControlGain | None:
    """The gain by which the headline says whether growth paid; the first if it says that none does."""
    sides = {one.side for one in found}
    told = sides & {"better", "worse"}
    return next((one for one in found if len(told) != 1 or one.side in told), None)


def headline(result: dict[str, Any]) -> Words:
    """One short sentence: what grew, whether it paid, and the number that says so."""
    rows, kept = result["rows"], kept_of(result)
    if rows["grown"]["test_loss"] is None:
        return _opening(result, kept, is_finite=False) + words("; the loss of the network is not finite.")
    said = _opening(result, kept)
    if not kept:
        return said + words(".")
    if rows["host_on"] is None:
        return said + words("; what that was worth was not measured.")
    if rows["host_on"]["test_loss"] is None:
        return said + words(", and that paid: the loss of the host trained on is not finite.")
    return said + _verdict(gains(result, "host_on"))


def comparison(result: dict[str, Any]) -> list[Words]:
    """What the grown network is better or worse by than each control, one sentence each; or why that is not known."""
    rows = result["rows"]
    if rows["grown"]["test_loss"] is None:
        return [words("Nothing can be compared; try a smaller ", Name("--lr"), ".")]
    if rows["host_on"] is None:
        why = result["reasons"].get("host_on", "its row is missing")
        return [words("It was not compared with the host trained on: ", quoted(why))]
    said = [
        words("Against the host trained on for as many FLOPs, at a learning rate searched for it, the network has ")
    ]
    said[0] += _told(rows["host_on"], gains(result, "host_on"))
    if not result["probe_flops"] and {one["outcome"] for one in result["lifecycles"]} <= {"CANCELLED"}:
        said.append(
            words("Both are the same network: only learning rate and schedule differ, and those of the control ")
            + words("were searched, so that the difference says nothing about growth.")
        )
    if kept_of(result) and rows["static"] is not None:
        static = words("Against a network of about this size from the start it has ")
        said.append(static + _told(rows["static"], gains(result, "static")))
    return said


def trying(result: dict[str, Any]) -> Cited | None:
    """Share of the training FLOPs that arms and judging took; None if nothing was tried."""
    if not result["lifecycles"]:
        return None
    document = result_document(result)
    return ratio(document.cite("probe_flops"), document.cite("rows", "grown", "train_flops"))


def kept_of(result: dict[str, Any]) -> list[int]:
    """Indices of the lifecycles whose grafts stayed."""
    return [index for index, one in enumerate(result["lifecycles"]) if one["outcome"] == "FOSSILIZED"]


def _opening(result: dict[str, Any], kept: Sequence[int], *, is_finite: bool = True) -> Words:
    if kept:
        document = result_document(result)
        parts = count([document.source("lifecycles", index, "outcome") for index in kept])
        return words("The network grew ", counted(parts, "part"))
    outcomes = {one["outcome"] for one in result["lifecycles"]}
    if not outcomes:
        return words("No growth was tried")
    if "ROLLED_BACK" in outcomes:
        return words("Nothing stayed: the run went back to before what had grown")
    if not is_finite:  # no worth can be told of a candidate then
        return words("Nothing grew")
    if all(is_not_tried(one["reason"]) for one in result["lifecycles"]):  # else a round tries at least one
        return words("Nothing grew, and no candidate was tried: the run memorised its samples")
    if outcomes == {"CANCELLED"}:
        return words("Nothing grew: every candidate was taken back before it was judged")
    return words("Nothing grew: no candidate proved its worth")


def _told(row: dict[str, Any], found: list[ControlGain]) -> Words:
    """All gains over a control, and which of them one run cannot tell."""
    said = listed([one.told() for one in found]) if found else words("nothing to compare with")
    if row["test_loss"] is None:
        return said + words("; the test loss of that control is not finite.")
    unclear = [one.measure for one in found if one.side == "unclear"]
    if not unclear:
        return said + words(".")
    if len(unclear) == len(found):
        return said + words(": too small a difference for these test samples to tell.")
    return said + words(f"; the difference in {unclear[0]} is too small for these test samples to tell.")


def _verdict(found: list[ControlGain]) -> Words:
    """Whether growth paid, by the gains over the host trained on."""
    better, worse, unclear = ([one for one in found if one.side == side] for side in ("better", "worse", "unclear"))
    if better and worse:
        measures = " and ".join(sorted((one.measure for one in (*better, *worse)), reverse=True))
        return words(f", but {measures} disagree about whether it paid.")
    if unclear and not better and not worse:
        return words(", but these test samples cannot tell whether that paid.")
    paid = "and that paid" if better else "but that did not pay"
    if not better and not worse:
        return words(f", {paid}: it is no better than the host trained on.")
    decided = deciding(found)
    assert decided is not None
    return words(f", {paid}: ", decided.size(), " than the host trained on.")
