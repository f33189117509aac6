"""A run as a tree of spans: one pass over the lines of its logs, nothing per step.

The tree is ``run`` over ``epoch``, ``checkpoint``, ``command``, ``lifecycle``, ``round`` and ``trial``; arms are parts
of the last two. A lifecycle begins before its round and may outlive it, so that it is no part of it; the arm of a
candidate is linked to its lifecycle.
"""

from collections.abc import Callable, Iterable
from typing import Any

from esper.contracts.lifecycle import State
from esper.observability.spans import (
    ARM,
    CHECKPOINT,
    EPOCH,
    LIFECYCLE,
    ROUND,
    RUN,
    TRIAL,
    Attributes,
    Line,
    Moment,
    Span,
    moment_of,
    span_id,
    told,
)


class Spans:
    """Folds the lines of one run into spans.

    Args:
        run_id: of the run.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._run: Span | None = None
        self._open: dict[tuple[str, int], Span] = {}
        self._arms: dict[str, tuple[float, int | None]] = {}  # when it was first heard of, and its lifecycle
        self._boundary = self._judging = self._last = 0.0

    def __call__(self, line: Line) -> list[Span]:
        """Take a line; gives the spans that it ends."""
        if line["event"] == "model" and self._run is None:
            self._begin_run(line)
        if self._run is None:
            return []
        self.reach(line["time"])
        fold = _FOLDS.get(line["event"])
        return [] if fold is None else fold(self, line)

    def reach(self, time: float) -> None:
        """The run lasts until this time at least."""
        self._last = max(self._last, time)

    def close(self, time: float, error: str | None = None) -> list[Span]:
        """End what is under way, the run last of all.

        Args:
            time: of the end, for a run that is not finished.
            error: what it failed by; None if it is finished, or was interrupted.
        """
        run = self._run
        if run is None:
            return []
        if not run.is_well:
            self.reach(time)
        outcome = "finished" if run.is_well else "interrupted" if error is None else "failed"
        run.error = None if run.is_well else error
        spans = [
            *self._left_arms(""),
            *(one.ended(self._last, outcome=outcome) for one in self._open.values()),
            run.ended(self._last, outcome=outcome),
        ]
        self._run, self._open = None, {}
        return spans

    def _begin_run(self, line: Line) -> None:
        about = told({"planned_steps": line["planned_steps"], "host": line["type"], "parameters": line["parameters"]})
        self._run = Span(
            kind=RUN, id=span_id(self._run_id, RUN), parent=None, begin=line["time"], attributes=self._named(about)
        )
        self._boundary = line["time"]

    def _named(self, attributes: Attributes) -> Attributes:
        return {"esper.run": self._run_id} | attributes

    def _span(self, kind: str, which: object, begin: float, parent: str | None = None, **attributes: Any) -> Span:
        assert self._run is not None
        return Span(
            kind=kind,
            id=span_id(self._run_id, kind, which),
            parent=parent or self._run.id,
            begin=max(begin, self._run.begin),
            attributes=self._named(told(attributes)),
        )

    def _epoch(self, line: Line) -> list[Span]:
        begin, self._boundary = self._boundary, line["time"]
        names = ("epoch", "step", "lr", "train_loss", "val_loss", "val_metric")
        return [self._span(EPOCH, moment_of(line), begin, **_some(line, names)).ended(line["time"])]

    def _checkpoint(self, line: Line) -> list[Span]:
        about = {name: value for name, value in line.items() if name not in ("event", "time", "seconds")}
        begin = line["time"] - line["seconds"]
        return [self._span(CHECKPOINT, moment_of(line), begin, **about).ended(line["time"])]

    def _transition(self, line: Line) -> list[Span]:
        lifecycle, time = line["lifecycle"], line["time"]
        if lifecycle is None:
            return []
        if line["arm"] is not None:
            self._arms.setdefault(line["arm"], (time, lifecycle))
        if line["target"] == State.GERMINATED.name:
            about = _some(line, ("lifecycle", "layer_id", "seed_id", "who", "step"))
            self._open[LIFECYCLE, lifecycle] = self._span(LIFECYCLE, lifecycle, time, **about)
        if line["target"] == State.EVALUATING.name and line["arm"] is None:
            self._judging = time
        about = _some(line, ("step", "source", "target", "who", "reason", "arm"))
        self._note((LIFECYCLE, lifecycle), line["target"], time, about)
        return []

    def _field_report(self, line: Line) -> list[Span]:
        names = ("blueprint", "strategy", "trial", "parameters", "outcome", "reason", "flops")
        return self._ended((LIFECYCLE, line["lifecycle"]), line, names)

    def _round_begun(self, line: Line) -> list[Span]:
        about = {"round": line["round"], "step": line["step"], "candidates": len(line["candidates"])}
        self._open[ROUND, line["round"]] = self._span(ROUND, line["round"], line["time"], **about)
        return []

    def _trial_begun(self, line: Line) -> list[Span]:
        about = {"trial": line["trial"], "step": line["step"], "candidates": len(line["candidates"])}
        self._open[TRIAL, line["trial"]] = self._span(TRIAL, line["trial"], line["time"], **about)
        return []

    def _arm_ended(self, line: Line) -> list[Span]:
        names = ("step", "steps", "round", "lifecycle", "verdict", "passed", "twin_z", "gain", "arm_flops")
        about = _some(line, names)
        arm = self._arm(line["arm"], moment_of(line), line["time"], ROUND, line["round"], **about)
        return [arm.ended(line["time"])]

    def _round_ended(self, line: Line) -> list[Span]:
        arms = self._left_arms(f"round{line['round']}/")
        adopted = None if line["adopted"] is None else line["adopted"]["lifecycle"]
        return arms + self._ended((ROUND, line["round"]), line, ("reason",), adopted=adopted)

    def _trial_ended(self, line: Line) -> list[Span]:
        arms = []
        if "steps" in line:  # its twin has run, since its grafts were evaluated
            name = f"trial{line['trial']}/twin"
            self._arms[name] = (self._judging, None)
            about = _some(line, ("step", "steps", "trial", "passed", "twin_z", "gain"))
            arms = [self._arm(name, name, line["time"], TRIAL, line["trial"], **about).ended(line["time"])]
        kept = len(line["adopted"])
        return arms + self._ended((TRIAL, line["trial"]), line, ("reason", "passed"), adopted_grafts=kept)

    def _kept(self, line: Line) -> list[Span]:
        about = _some(line, ("step", "look", "passed", "ablation_z"))
        self._note((LIFECYCLE, line["lifecycle"]), line["event"], line["time"], about)
        return []

    def _noted(self, line: Line) -> list[Span]:
        assert self._run is not None
        about = {name: value for name, value in line.items() if name not in ("event", "time")}
        self._run.moments.append(Moment(line["event"], line["time"], told(about)))
        return []

    def _flags(self, line: Line) -> list[Span]:
        assert self._run is not None
        flags = {f"flag.{name}": flag["is_on"] for name, flag in line["flags"].items()}
        self._run.attributes |= told({"model_id": line["model_id"]} | flags)
        return []

    def _finished(self, line: Line) -> list[Span]:
        assert self._run is not None
        self._run.attributes |= told(_some(line, ("step", "select_loss", "select_metric", "train_flops")))
        self._run.is_well = True
        return []

    def _note(self, which: tuple[str, int], name: str, time: float, attributes: dict[str, Any]) -> None:
        if which in self._open:
            self._open[which].moments.append(Moment(name, time, told(attributes)))

    def _ended(self, which: tuple[str, int], line: Line, names: Iterable[str], **further: Any) -> list[Span]:
        one = self._open.pop(which, None)
        return [] if one is None else [one.ended(line["time"], **_some(line, names), **further)]

    def _left_arms(self, prefix: str) -> list[Span]:
        """Arms that nobody will end any more."""
        left = [name for name in self._arms if name.startswith(prefix)]
        arms = (self._arm(name, f"{name} left", self._last, *_where(name)) for name in left)
        return [arm.ended(self._last, outcome="given up") for arm in arms]

    def _arm(self, name: str, which: str, end: float, kind: str, number: int, **attributes: Any) -> Span:
        begin, lifecycle = self._arms.pop(name, (end, None))
        parent = self._open.get((kind, number))
        lifecycle = attributes.get("lifecycle", lifecycle)
        arm = self._span(ARM, which, begin, None if parent is None else parent.id, arm=name, **attributes)
        if lifecycle is not None:
            arm.links = (span_id(self._run_id, LIFECYCLE, lifecycle),)
        return arm


def _some(line: Line, names: Iterable[str]) -> dict[str, Any]:
    return {name: line[name] for name in names if name in line}


def _where(arm: str) -> tuple[str, int]:
    """The round or trial of an arm, by its name (``round3/...``, ``trial1/twin``)."""
    head = arm.partition("/")[0]
    kind = ROUND if head.startswith(ROUND) else TRIAL
    return kind, int(head.removeprefix(kind))


_FOLDS: dict[str, Callable[[Spans, Line], list[Span]]] = {
    "epoch": Spans._epoch,
    "checkpoint": Spans._checkpoint,
    "transition": Spans._transition,
    "field_report": Spans._field_report,
    "round_begun": Spans._round_begun,
    "round_ended": Spans._round_ended,
    "trial_begun": Spans._trial_begun,
    "trial_ended": Spans._trial_ended,
    "arm_ended": Spans._arm_ended,
    "keep_look": Spans._kept,
    "flags": Spans._flags,
    "finished": Spans._finished,
    **dict.fromkeys(
        ("note", "refused", "veto", "fault", "recovery", "emergency", "rollback", "rechunked"), Spans._noted
    ),
}
