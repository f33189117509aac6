"""The live display as lines of text, for any width and height."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from esper.cli.console.scene import Awake, Contest, ControlRuns, Decision, Scene, ShownCandidate
from esper.cli.console.time_left import TimeLeft, clock
from esper.observability.told import number

if TYPE_CHECKING:
    from esper.runtime.growth import Position

LABEL, VALUE = 15, 9
"""Columns of the name of a curve, and of its newest value."""

CURVE, BAR = 48, 24
"""Columns that a curve, or the bar of an arm, takes at most."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_QUIET, _GOOD, _BAD, _NOW = "dim", "green", "yellow", "cyan"
_TONES = {"plain": "", "good": _GOOD, "bad": _BAD}
_BLENDED = frozenset({"STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED"})
"""States in which the alpha that was measured still holds."""

_STATES = {"FOSSILIZED": _GOOD, "CULLED": _QUIET, "CANCELLED": _QUIET, "ROLLED_BACK": _BAD}


class _Room(NamedTuple):
    """How much is shown; the first that fits is taken."""

    has_gaps: bool
    decisions: int
    seeds: int
    candidates: int


_ROOMS = (
    _Room(True, 6, 5, 9),
    _Room(False, 6, 5, 9),
    _Room(False, 3, 3, 5),
    _Room(False, 2, 0, 4),
    _Room(False, 0, 0, 4),
    _Room(False, 0, 0, 0),
)


def screen(
    scene: Scene, position: "Position", pace: TimeLeft, now_s: float, width: int, height: int, *, is_over: bool
) -> list[Text]:
    """The lines of the display, at most ``height``, none of them wider than ``width``.

    Args:
        scene: what is known from the events.
        position: where the run stands.
        pace: how fast it goes.
        now_s: what time it is, on the clock of ``scene.controls``.
        is_over: whether nothing more will change.
    """
    lines: list[Text] = []
    for room in _ROOMS:
        lines = list(_lines(scene, position, pace, now_s, width, room, is_over))
        if len(lines) <= height:
            break
    lines = lines[: max(1, height)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def sparkline(values: Sequence[float | None], width: int, *, is_log: bool = False) -> str:
    """A curve as blocks, one per value or, where there are more than ``width``, per mean of neighbours.

    Args:
        values: None, where it is undefined, leaves a gap.
        width: columns at most.
        is_log: whether to draw logarithms, on which late progress is seen too; not of values that have none.
    """
    count = min(width, len(values))
    cells = [_mean(values[index * len(values) // count : (index + 1) * len(values) // count]) for index in range(count)]
    known = [cell for cell in cells if cell is not None]
    if not known:
        return " " * count
    if is_log and min(known) > 0:
        return sparkline([None if cell is None else math.log(cell) for cell in cells], width)
    low, span = min(known), max(known) - min(known)
    top = len(_BLOCKS) - 1
    return "".join(" " if cell is None else _BLOCKS[round(top * (cell - low) / span) if span else 0] for cell in cells)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _lines(
    scene: Scene, position: "Position", pace: TimeLeft, now_s: float, width: int, room: _Room, is_over: bool
) -> Iterator[Text]:
    yield _progress(scene, position, pace, width, is_over)
    yield _place_in_run(scene, position)
    sections = [_curves(scene, width)]
    if scene.contest is not None and room.candidates:
        sections.append(_contest(scene, scene.contest, position, width, room.candidates))
    if room.seeds:
        sections.append(_seeds(scene, room.seeds))
    if scene.decisions and room.decisions:
        sections.append(_decisions(list(scene.decisions)[-room.decisions :], width))
    if scene.controls:
        sections.append(_controls(scene.controls, now_s, width, is_over))
    for section in sections:
        lines = list(section)
        if lines and room.has_gaps:
            yield Text()
        yield from lines


def _progress(scene: Scene, position: "Position", pace: TimeLeft, width: int, is_over: bool) -> Text:
    share = position.step / position.planned_steps
    left = pace.seconds(scene.work(position)[1])
    if scene.is_finished:
        words = "trained"
    elif is_over:
        words = "stopped"
    elif scene.is_stopping:
        words = "stopping after this step"
    else:
        words = "" if left is None else f"{clock(left)} left"
    ending = f" {share:>4.0%}  {words:<10}"
    return Text.assemble(_bar(share, max(4, width - len(ending)), _GOOD if scene.is_finished else _NOW), ending)


def _place_in_run(scene: Scene, position: "Position") -> Text:
    rate = "" if scene.lr is None else f"   learning rate {scene.lr:.2g}"
    return Text(f"epoch {position.epoch}   step {position.step:,} of {position.planned_steps:,}{rate}")


def _curves(scene: Scene, width: int) -> Iterator[Text]:
    curves = {"train loss": (scene.train_losses, ".4f"), "held-out loss": (scene.val_losses, ".4f")}
    if any(value is not None for value in scene.val_metrics):
        curves[scene.metric] = (scene.val_metrics, ".1%")
    for name, (values, spec) in curves.items():
        newest = number(values[-1] if values else None, spec)
        curve = sparkline(values, min(CURVE, max(1, width - LABEL - VALUE - 2)), is_log=name != scene.metric)
        yield Text.assemble((f"{name[: LABEL - 1]:<{LABEL}}", _QUIET), (f"{newest:>{VALUE}}  ", "bold"), (curve, _NOW))


def _contest(scene: Scene, contest: Contest, position: "Position", width: int, most: int) -> Iterator[Text]:
    is_arm = position.arm is not None
    if contest.verdict is not None:
        state = contest.verdict.text
    elif contest.kind == "trial":
        state = "its twin is trained" if is_arm else "grows in the run itself"
    elif is_arm:
        state = "arms replay the steps that the run has done"
    else:
        state = f"the run is their twin until step {contest.end_step:,}"
    tone = "plain" if contest.verdict is None else contest.verdict.tone
    yield Text.assemble((f"{contest.kind} {contest.number}".ljust(LABEL), _QUIET), (state, _TONES[tone]))
    if contest.kind == "trial" and contest.verdict is None and is_arm:
        yield _arm("the twin", position, width)
    running = scene.running(position)
    longest = min(max(len(one.place) for one in contest.candidates), max(8, width // 3))
    for one in contest.candidates[:most]:
        name = one.place if len(one.place) <= longest else one.place[: longest - 1] + "…"
        name = f"{name:<{longest}}"
        yield _arm(name, position, width) if one is running else _candidate(one, name, contest, width)


def _candidate(one: ShownCandidate, name: str, contest: Contest, width: int) -> Text:
    if one.end is not None:
        has_won = one.end["passed"]
        sign, verdict, style = ("✓", "beats the twin", _GOOD) if has_won else ("·", "lost          ", _QUIET)
        z = f"  z {number(one.end['twin_z'], '+.1f'):>5}"
        line = Text.assemble((f"  {sign} ", style), f"{name}  ", (verdict, style), z)
        loss, twin = number(one.end["gate_loss"], ".4f"), number(one.end["twin_gate_loss"], ".4f")
        against = f"  loss {loss} against {twin}"
        return line.append(against if len(line) + len(against) <= width else f"  loss {loss}", _QUIET)
    if one.gone is not None:
        state = "not tried" if one.gone.startswith("not tried") else "taken back"
    elif contest.kind == "trial":
        state = one.blueprint
    else:
        state = "waiting" if contest.verdict is None else "not tried"
    return Text(f"  · {name}  {state}", _QUIET)


def _arm(name: str, position: "Position", width: int) -> Text:
    """An arm that runs."""
    if position.arm_steps is None:
        return Text.assemble(("  ▸ ", _NOW), f"{name}  begins")
    ending = f"  {position.arm_step:,} of {position.arm_steps:,} steps"
    bar = _bar(position.arm_step / position.arm_steps, _columns(width, 4 + len(name) + 2 + len(ending)), _NOW)
    return Text.assemble(("  ▸ ", _NOW), f"{name}  ", bar, ending)


def _seeds(scene: Scene, most: int) -> Iterator[Text]:
    waiting = scene.on_round()
    awake = [one for one in scene.awake.values() if one.lifecycle not in waiting]
    if awake:
        yield from _awake(scene, awake[-most:])
        if len(awake) > most:
            yield Text(" " * LABEL + f"and {len(awake) - most:,} more", _QUIET)
    elif scene.gradients:
        largest = ", ".join(f"{name} ({norm:.2g})" for name, norm in scene.gradients[:3])
        others = "all others" if waiting else "all"
        yield Text.assemble(("seeds".ljust(LABEL), _QUIET), f"{others} sleep; largest gradients: {largest}")


def _awake(scene: Scene, seeds: Sequence[Awake]) -> Iterator[Text]:
    names = [one.place if one.seed == "all" else f"{one.place}, seed {one.seed}" for one in seeds]
    longest = max(map(len, names))
    for index, (one, name) in enumerate(zip(seeds, names, strict=True)):
        label = ("" if index else "seeds").ljust(LABEL)
        alpha = scene.alphas.get(one.lifecycle) if one.state in _BLENDED else None
        measured = "" if alpha is None else f"  alpha {alpha:.2f}"
        state = (f"{one.state:<13}", _STATES.get(one.state, _NOW))
        yield Text.assemble((label, _QUIET), f"{name:<{longest}}  ", state, (measured, _QUIET))


def _decisions(decisions: Sequence[Decision], width: int) -> Iterator[Text]:
    for one in decisions:
        label = "" if one.step is None else f"step {one.step:,}"
        for part in textwrap.wrap(
            f"{one.words.what} {one.words}", max(20, width - LABEL), max_lines=2, placeholder="…"
        ):
            yield Text.assemble((label.ljust(LABEL), _QUIET), (part, _TONES[one.words.tone]))
            label = ""


def _controls(controls: dict[str, ControlRuns], now_s: float, width: int, is_over: bool) -> Iterator[Text]:
    for name, one in controls.items():
        is_done, left = one.done == one.total, one.seconds_left(now_s)
        time_left = "" if left is None or is_done or is_over else f"  {clock(left)} left"
        ending = f"  {one.done} of {one.total} whole runs{time_left}"
        bar = _bar(one.done / one.total, _columns(width, LABEL + len(ending)), _GOOD if is_done else _NOW)
        yield Text.assemble((name.ljust(LABEL), _QUIET), bar, ending)


def _columns(width: int, others: int) -> int:
    """Columns that a small bar has beside ``others``."""
    return min(BAR, max(4, width - others))


def _bar(share: float, width: int, style: str) -> Text:
    full = round(2 * width * min(1.0, max(0.0, share)))
    done = "━" * (full // 2) + "╸" * (full % 2)
    return Text.assemble((done, style), ("━" * (width - len(done)), _QUIET))
