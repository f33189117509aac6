"""Results as tables of markdown."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from esper.runtime.judging.gates import LEAST_LEAD
from esper.runtime.trying.arms import HOPELESS
from esper.tamiyo.chance import PER_TOKEN

Tree = dict[str, Any]
Arm = dict[str, Any]
Rule = Callable[[Tree, Arm], bool]

LOOKS = ("0.03", "0.05", "0.1")


def texts(trees: Sequence[Tree]) -> str:
    """What growth gained on texts, in nats; how far runs differ by chance; what rules would have made of it."""
    parts = (chances(trees), gains(trees), repeats(trees), rules(trees), given_up(trees))
    return "\n\n".join(part for part in parts if part)


def small(trees: Sequence[Tree]) -> str:
    """What growth gained on MNIST-1D and digits, in nats and points of test accuracy."""
    return gains(trees)


def chances(trees: Sequence[Tree]) -> str:
    """Test loss of runs grown at 10 to 30 % minus the host's, by host and targets per parameter."""
    found: dict[tuple[float, str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for tree in trees:
        for arm in tree["arms"]:
            if 0.1 <= arm["at"] <= 0.3:
                row = (tree["parameters"], tree["host"], round(tree["targets_per_parameter"]))
                found[row][arm["arm"] + (", ramp" if arm["ramp"] else "")].append(_gain(tree, arm))
    names = [kind + born for kind in ("hidden x2.5", "stream x1.5") for born in ("", ", ramp")]
    lines = [
        [host, f"{targets}", *(_spread(row[name]) for name in names)]
        for (_, host, targets), row in sorted(found.items())
    ]
    return _table(["host", "targets per parameter", *names], lines)


def gains(trees: Sequence[Tree]) -> str:
    """Hosts, and how far above or below them the same ones end that were grown: means, lowest and highest."""
    hosts: dict[tuple[str, float, float, int], list[Tree]] = defaultdict(list)
    for tree in trees:
        hosts[(tree["host"], tree["lr"], tree["targets_per_parameter"], tree["parameters"])].append(tree)
    lines = []
    for (host, lr, targets, parameters), ours in sorted(hosts.items(), key=lambda item: (-item[0][2], item[0])):
        ends = [
            _spread([tree["loss"] for tree in ours], "{:.3f}"),
            _spread([_points(tree) for tree in ours if "accuracy" in tree], "{:.1f}"),
            "",
        ]
        lines.append([host, f"{lr:g}", f"{parameters:,}", f"{targets:.3g}", "", str(len(ours)), *ends])
        arms = defaultdict(list)
        for tree in ours:
            for arm in tree["arms"]:
                arms[_told(arm)].append((tree, arm))
        for told, pairs in sorted(arms.items(), key=lambda item: _order(item[1][0][1])):
            points = [_points(arm) - _points(tree) for tree, arm in pairs if "accuracy" in tree]
            won = ", ".join(str(sum(one > least for one in points)) for least in (1e-6, 1 - 1e-6)) if points else ""
            changes = [_spread([_gain(*pair) for pair in pairs]), _spread(points, "{:+.2f}"), won]
            lines.append(["", "", "", "", told, str(len(pairs)), *changes])
    heads = ["host", "rate", "parameters", "targets per parameter", "grown", "runs", "test loss"]
    return _table([*heads, "accuracy, points", "runs that gain, by a point"], lines)


def repeats(trees: Sequence[Tree]) -> str:
    """How far apart hosts end that were trained more than once by the same recipe and seed."""
    ends: dict[tuple[str, float, int, int], list[float]] = defaultdict(list)
    for tree in trees:
        ends[(tree["host"], tree["lr"], tree["steps"], tree["seed"])].append(tree["loss"])
    again = [losses for losses in ends.values() if len(losses) > 1]
    if not again:
        return ""
    nats = max(max(losses) - min(losses) for losses in again)
    share = _percent(max(max(losses) / min(losses) - 1 for losses in again), 1)
    return f"{len(again)} hosts were trained again by the same recipe and seed: up to {nats:.3f} ({share}) apart."


def rules(trees: Sequence[Tree]) -> str:
    """How each rule decides about the arms whose end is known."""
    known = [(tree, arm) for tree in trees for arm in tree["arms"] if "0.1" in arm["leads"]]
    ahead = {
        f"ahead at equal {told}, after {_percent(float(look))}": partial(_leads, kind=kind, look=look)
        for kind, told in (("flops", "FLOPs"), ("steps", "steps"))
        for look in LOOKS
    }
    least = f"{_percent(LEAST_LEAD, 1)} ahead at equal steps, after 10 %"
    chosen: dict[str, Rule] = ahead | {
        least: _leads_enough,
        f"{PER_TOKEN} targets per parameter, no arm": _has_targets,
        "both": lambda tree, arm: _has_targets(tree, arm) and _leads_enough(tree, arm),
    }
    lines = []
    for name, rule in chosen.items():
        grown = [_gain(tree, arm) for tree, arm in known if rule(tree, arm)]
        left = [_gain(tree, arm) for tree, arm in known if not rule(tree, arm)]
        false, missed = [gain for gain in grown if gain > 0], [gain for gain in left if gain < 0]
        worst, best = f"{max(false):+.3f}" if false else "", f"{min(missed):+.3f}" if missed else ""
        lines.append([name, str(len(grown)), str(len(false)), worst, str(len(missed)), best])
    pays = sum(_gain(*one) < 0 for one in known)
    heads = [
        f"rule ({len(known)} arms, {pays} end ahead)",
        "grown",
        "of these behind",
        "worst",
        "missed",
        "best missed",
    ]
    return _table(heads, lines) if known else ""


def given_up(trees: Sequence[Tree]) -> str:
    """Arms whose training loss lay too far above the run's for a quarter of their window."""
    known = [(tree, arm) for tree in trees for arm in tree["arms"] if arm["lag"] is not None]
    lines = []
    for has_ramp, has_targets, is_ahead in itertools.product((False, True), (True, False), (True, False)):
        ours = [
            arm["lag"]
            for tree, arm in known
            if (arm["ramp"] > 0, _has_targets(tree, arm), _gain(tree, arm) < 0) == (has_ramp, has_targets, is_ahead)
        ]
        told = ["yes" if has_ramp else "no", f"{'at least' if has_targets else 'below'} {PER_TOKEN}"]
        gone = sum(lag > HOPELESS for lag in ours)
        lines.append([*told, "ahead" if is_ahead else "behind", str(len(ours)), str(gone)])
    heads = ["ramp", "targets per parameter", "end", "arms", f"training loss {_percent(HOPELESS)} above the run's"]
    return _table(heads, lines) if known else ""


def _has_targets(tree: Tree, arm: Arm) -> bool:
    return bool(tree["targets_per_parameter"] >= PER_TOKEN)


def _leads_enough(tree: Tree, arm: Arm) -> bool:
    return _lead(arm, "steps", "0.1") >= LEAST_LEAD


def _leads(tree: Tree, arm: Arm, kind: str, look: str) -> bool:
    return _lead(arm, kind, look) > 0


def _lead(arm: Arm, kind: str, look: str) -> float:
    return -arm["leads"][look][kind]["relative"]


def _gain(tree: Tree, arm: Arm) -> float:
    return arm["loss"] - tree["loss"]


def _points(found: dict[str, Any]) -> float:
    return 100 * float(found["accuracy"])


def _order(arm: Arm) -> tuple[str, float, int, float]:
    return arm["arm"], arm["at"], arm["ramp"], arm["lost"]


def _told(arm: Arm) -> str:
    born = f", ramp {arm['ramp']}" if arm["ramp"] else ""
    lost = f", {_percent(arm['lost'])} of the FLOPs lost" if arm["lost"] else ""
    return f"{arm['arm']} at {_percent(arm['at'])}{born}{lost}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _spread(values: Sequence[float], form: str = "{:+.3f}") -> str:
    if not values:
        return ""
    mean = form.format(sum(values) / len(values))
    ends = " to ".join(form.format(end) for end in (min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({ends})"


def _table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])
