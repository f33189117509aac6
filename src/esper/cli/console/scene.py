"""What the live display shows, gathered from the events: plain values only, nothing of the model."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from esper.observability.labels import place_label
from esper.observability.told import Event, Told, place, told

if TYPE_CHECKING:
    from esper.runtime.growth import Position

DECISIONS = 6
_ELSEWHERE = frozenset({"arm_ended", "round_begun", "trial_begun", "note"})
"""Events that are shown, but not among the decisions."""


@dataclass
class ShownCandidate:
    """One candidate of a round, or one graft of a live trial.

    Attributes:
        arm: name of its arm.
        end: what its arm ended with; None before that.
        gone: why it was taken back before its arm ran; None if it was not.
    """

    lifecycle: int
    place: str
    blueprint: str
    arm: str
    end: Event | None = None
    gone: str | None = None


@dataclass
class Contest:
    """A round or a live trial, under way or the last one.

    Attributes:
        steps: of the window that each arm replays; None for a live trial, whose length follows from what happens.
        verdict: how it ended; None before that.
    """

    kind: Literal["round", "trial"]
    number: int
    end_step: int | None
    steps: int | None
    candidates: list[ShownCandidate]
    verdict: Told | None = None


@dataclass
class Awake:
    """A seed that is not asleep; ``alpha`` as it was last measured."""

    place: str
    seed: int | str
    state: str
    lifecycle: int


@dataclass
class Decision:
    """What was decided at a step; the same for several places is one decision."""

    step: int | None
    words: Told


@dataclass
class ControlRuns:
    """A control under way: how many of its ``total`` whole runs are over, and when the latest of them was."""

    total: int
    began_s: float
    done: int = 0
    latest_s: float = 0.0

    def note(self, now_s: float, done: int) -> None:
        """``done`` runs are over."""
        self.latest_s, self.done = now_s, done

    def seconds_left(self, now_s: float) -> float | None:
        """Seconds for the runs that are left, if they take as long as those before; None before there are any."""
        if self.done == 0 or self.latest_s == self.began_s:
            return None
        expected = (self.latest_s - self.began_s) / self.done * (self.total - self.done)
        return max(0.0, expected - (now_s - self.latest_s))


@dataclass
class Scene:
    """All that is known of a run without asking it.

    Attributes:
        gradients: places by the largest gradient norm of their seeds, largest first, at the last boundary.
    """

    train_losses: list[float | None] = field(default_factory=list)
    val_losses: list[float | None] = field(default_factory=list)
    val_metrics: list[float | None] = field(default_factory=list)
    metric: str = "accuracy"
    lr: float | None = None
    contest: Contest | None = None
    awake: dict[tuple[str, int | str], Awake] = field(default_factory=dict)
    alphas: dict[int, float] = field(default_factory=dict)
    gradients: list[tuple[str, float]] = field(default_factory=list)
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=DECISIONS))
    controls: dict[str, ControlRuns] = field(default_factory=dict)
    is_finished: bool = False
    is_stopping: bool = False
    _arms_done: int = 0

    def add(self, event: Event) -> None:
        """Take in an event of the session."""
        match event["event"]:
            case "model":
                self.metric = event.get("metric") or self.metric
            case "epoch":
                self.train_losses.append(event["train_loss"])
                self.val_losses.append(event["val_loss"])
                self.val_metrics.append(event["val_metric"])
                self.lr = event["lr"]
            case "telemetry":
                self.gradients = _by_gradient(event["places"])
            case "round_begun":
                begun, end = event["step"], event["end_step"]
                self.contest = Contest("round", event["round"], end, end - begun, _candidates(event))
            case "trial_begun":
                self.contest = Contest("trial", event["trial"], None, None, _candidates(event))
            case "arm_ended":
                self._end_arm(event)
            case "round_ended" | "trial_ended" if self.contest is not None:
                self.contest.verdict = told(event)
            case "transition":
                self._move(event)
            case "field_report":
                self._take_back(event["lifecycle"], event["reason"])
            case "finished":
                self.is_finished = True
        words = told(event)
        if words is not None and event["event"] not in _ELSEWHERE:
            self._decide(event.get("step"), words)

    def running(self, position: "Position") -> ShownCandidate | None:
        """The candidate whose arm runs now."""
        if self.contest is None or position.arm is None:
            return None
        open_ = (one for one in self.contest.candidates if one.end is None and one.gone is None)
        return next((one for one in open_ if one.arm == position.arm), None)

    def on_round(self) -> frozenset[int]:
        """Lifecycles on trial in the round under way."""
        if self.contest is None or self.contest.kind != "round" or self.contest.verdict is not None:
            return frozenset()
        return frozenset(one.lifecycle for one in self.contest.candidates)

    def work(self, position: "Position") -> tuple[float, float]:
        """What is done and what is left, in steps of the run; an arm is worth the window that it replays.

        Rounds that have not begun are not foreseen.
        """
        done: float = position.step + self._arms_done
        left: float = position.planned_steps - position.step
        contest = self.contest
        if contest is None or contest.verdict is not None or contest.steps is None:
            return done, left
        waiting = sum(one.end is None and one.gone is None for one in contest.candidates)
        is_running = self.running(position) is not None  # its end may be known before the position moves on
        share = position.arm_step / position.arm_steps if is_running and position.arm_steps else 0.0
        return done + share * contest.steps, left + max(0.0, waiting - share) * contest.steps

    def _end_arm(self, event: Event) -> None:
        if self.contest is None:
            return
        self._arms_done += self.contest.steps or 0
        for one in self.contest.candidates:
            if one.lifecycle == event["lifecycle"]:
                one.end = event

    def _take_back(self, lifecycle: int, reason: str) -> None:
        for one in self.contest.candidates if self.contest is not None else ():
            if one.lifecycle == lifecycle and one.end is None:
                one.gone = reason

    def _move(self, event: Event) -> None:
        if "alpha" in event["gates"]:
            self.alphas[event["lifecycle"]] = event["gates"]["alpha"]
        if event["arm"] is not None:
            return
        key = (event["layer_id"], event["seed_id"])
        if event["target"] == "DORMANT":
            self.awake.pop(key, None)
        elif key in self.awake:
            self.awake[key].state = event["target"]
        else:
            self.awake[key] = Awake(place(event), event["seed_id"], event["target"], event["lifecycle"])

    def _decide(self, step: int | None, words: Told) -> None:
        last = self.decisions[-1] if self.decisions else None
        if last is not None and words.places and (last.words.what, last.words.text) == (words.what, words.text):
            new = tuple(name for name in words.places if name not in last.words.places)
            self.decisions[-1] = Decision(step, words._replace(places=last.words.places + new))
        else:
            self.decisions.append(Decision(step, words))


def _candidates(event: Event) -> list[ShownCandidate]:
    number = event.get("round")
    return [
        ShownCandidate(
            one["lifecycle"],
            place(one),
            one["blueprint"],
            f"round{number}/{one['layer_id'] or 'model'}/{one['blueprint']}",
        )
        for one in event["candidates"]
    ]


def _by_gradient(places: dict[str, dict[str, list[float | None]]]) -> list[tuple[str, float]]:
    norms = [
        (place_label(layer_id), max((norm for norm in measures.get("gradient_norm", ()) if norm), default=0.0))
        for layer_id, measures in places.items()
    ]
    return sorted((one for one in norms if one[1]), key=lambda one: -one[1])
