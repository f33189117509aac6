"""What a comparison came to, as plain values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from esper.evaluation.baseline.cells import Setting
from esper.evaluation.baseline.compare import Compared, Rules, Timed, Verdict
from esper.evaluation.baseline.sides import Sides
from esper.evaluation.machine import machine, machine_id

FORMAT = 1


def verdict(found: Sequence[Compared]) -> Verdict:
    """Of all together: one regression is one, and what is undecided is not fine."""
    verdicts = {one.verdict for one in found}
    return next(one for one in ("regression", "undecided", "fine") if one in verdicts)


def told(sides: Sides, setting: Setting, rules: Rules, found: Sequence[Compared]) -> dict[str, Any]:
    """Everything that was found, and how, ready for JSON."""
    return {
        "format": FORMAT,
        "base": sides.base,
        "change": {"commit": sides.head, "is_clean": sides.is_clean},
        "machine": machine(),
        "machine_id": machine_id(),
        "setting": asdict(setting),
        "rules": asdict(rules),
        "verdict": verdict(found),
        "found": [_one(one) for one in found],
    }


def _one(one: Compared) -> dict[str, Any]:
    shared = {"batch_size": one.cell.batch_size, "seeds": one.cell.seeds, "what": one.what, "verdict": one.verdict}
    if not isinstance(one, Timed):
        return shared | {"base_bytes": one.base_bytes, "change_bytes": one.change_bytes, "growth": one.growth}
    return shared | {
        "calls": one.calls,
        "slowdown": {"estimate": one.estimate, "low": one.slowdown.low, "high": one.known_high},
        "base_s": one.base_s,
        "change_s": one.change_s,
    }
