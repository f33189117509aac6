"""What the store says of one flag, and how that stands in a flagd file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.contracts.errors import ConfigError
from esper.flags.shares import ALL, shown

ON, OFF, ALLOWED, BLOCKED = "on", "off", "allowed", "blocked"
"""Variants: which one flagd returns tells what decided."""

VARIANTS = {ON: True, OFF: False, ALLOWED: True, BLOCKED: False}
ENABLED, DISABLED = "ENABLED", "DISABLED"
MODEL_ID = {"var": "targetingKey"}


@dataclass(frozen=True, slots=True)
class Rule:
    """For which models a flag is on.

    Args:
        share: of all models, in thousandths of a percent; which ones follows from flag and model id.
        allow: ids for which it is on whatever the share.
        block: ids for which it is off.
        is_switched_off: off for all models, whatever else stands here.

    Raises:
        ConfigError: if an id is empty, or on both lists.
    """

    share: int = 0
    allow: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    is_switched_off: bool = False

    def __post_init__(self) -> None:
        if not all(one.strip() for one in (*self.allow, *self.block)):
            raise ConfigError("A model id on a list must not be empty. Name the model.")
        if both := sorted({*self.allow} & {*self.block}):
            raise ConfigError(f"{both[0]!r} cannot be both allowed and blocked. Take it off first (--forget).")

    def to_flagd(self) -> dict[str, Any]:
        """A flag of a flagd file."""
        fractional = {"fractional": [[ON, self.share], [OFF, ALL - self.share]]}
        lists = [{"in": [MODEL_ID, [*self.block]]}, BLOCKED, {"in": [MODEL_ID, [*self.allow]]}, ALLOWED]
        return {
            "state": DISABLED if self.is_switched_off else ENABLED,
            "variants": VARIANTS,
            "defaultVariant": OFF,
            "targeting": {"if": [*lists, fractional]},
        }

    def __str__(self) -> str:
        words = ["off for all" if self.is_switched_off else shown(self.share)]
        words += [f"{name} {', '.join(ids)}" for name, ids in (("allowed", self.allow), ("blocked", self.block)) if ids]
        return "; ".join(words)


def from_flagd(flag: Mapping[str, Any]) -> Rule | None:
    """The rule that a flag of a flagd file holds; None if somebody has written one of another shape.

    Args:
        flag: that :func:`esper.flags.document.parse` took.

    Raises:
        ConfigError: if its lists contradict each other.
    """
    is_switched_off = flag["state"] == DISABLED
    if not flag.get("targeting"):
        is_on = flag["variants"].get(flag.get("defaultVariant"), False)
        return Rule(ALL if is_on else 0, is_switched_off=is_switched_off)
    match flag["targeting"]:
        case {
            "if": [
                {"in": [_, [*block]]}, _, {"in": [_, [*allow]]}, _, {"fractional": [[_, int(share)], _]}
            ]
        } if all(isinstance(one, str) for one in (*block, *allow)) and 0 <= share <= ALL:  # fmt: skip
            rule = Rule(share, tuple(allow), tuple(block), is_switched_off)
            return rule if rule.to_flagd().items() <= {**flag}.items() else None
    return None
