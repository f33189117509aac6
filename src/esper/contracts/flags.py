"""Feature flags: the words. What sets them is :mod:`esper.flags`, what they switch reads only what stands here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.contracts.errors import ConfigError, closest

FLAGS: Mapping[str, str] = {
    "chunked_architecture": "layers carry many seeds, each with its own chunk; off: one seed a layer",
    "extended_lifecycle": "seeds live the eleven-state lifecycle; off: nothing germinates",
    "grafting_strategies": "the controller picks how a graft is blended in; off: always fixed_ramp",
    "message_bus": "the run is joined to its bus; off: it runs alone",
}
"""Every flag, and what it switches."""

NOT_IN_PLAY = "not in play: no store was named, and the environment says nothing"
"""The reason of a flag that nobody set: it is on, and Esper is as it is without flags."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as it was resolved for one model.

    Attributes:
        name: one of :data:`FLAGS`.
        is_on: its value, for the whole run.
        reason: what decided, for people and the audit log.
        is_by_name: whether somebody decided for this flag or model by name (switched off for all, a list, on for all),
            rather than by a share or for want of anything better.
        is_in_doubt: whether its rule failed, or its store could not be used.
    """

    name: str
    is_on: bool
    reason: str
    is_by_name: bool = False
    is_in_doubt: bool = False

    @property
    def is_switched_on(self) -> bool:
        """Whether it is on because somebody said so, rather than because nobody set it."""
        return self.is_on and self.reason != NOT_IN_PLAY


@dataclass(frozen=True, slots=True)
class Flags:
    """All flags as they were resolved for one model, once, before its run begins.

    Args:
        model_id: whose; the same id is always in the same cohort of a flag.
        values: by name, every one of :data:`FLAGS`.
    """

    model_id: str
    values: Mapping[str, Flag]

    @property
    def are_in_play(self) -> bool:
        """Whether any of them was set."""
        return any(flag.reason != NOT_IN_PLAY for flag in self.values.values())

    def is_on(self, name: str) -> bool:
        """Whether a flag is on.

        Raises:
            ConfigError: if there is no such flag.
        """
        return self[name].is_on

    def why_off(self, name: str) -> str | None:
        """A sentence on why a flag is off; None if it is on.

        Raises:
            ConfigError: if there is no such flag.
        """
        return None if self.is_on(name) else f"The flag {name} is off: {self[name].reason}."

    def __getitem__(self, name: str) -> Flag:
        check_name(name)
        return self.values[name]


def none_in_play(model_id: str = "") -> Flags:
    """All flags on, as nobody set any: Esper as it is without flags."""
    return Flags(model_id, {name: Flag(name, True, NOT_IN_PLAY) for name in FLAGS})


def told(flags: Flags) -> dict[str, dict[str, Any]]:
    """Flags as they are written down: by name ``is_on``, ``reason`` and ``is_in_doubt``."""
    return {
        name: {"is_on": flag.is_on, "reason": flag.reason, "is_in_doubt": flag.is_in_doubt}
        for name, flag in flags.values.items()
    }


def from_told(model_id: str, values: Mapping[str, Mapping[str, Any]]) -> Flags:
    """Flags from what :func:`told` gave; those that it does not name are not in play."""
    known = {
        name: Flag(name, bool(one["is_on"]), str(one["reason"]), is_in_doubt=bool(one.get("is_in_doubt")))
        for name, one in values.items()
        if name in FLAGS
    }
    return Flags(model_id, {**none_in_play().values, **known})


def resumed(began: Flags, now: Flags) -> Flags:
    """The flags of a run that goes on: those with which it began, but for what was switched off by name since.

    ``chunked_architecture`` stays even then: how many seeds a layer has is part of the model.
    """
    values = {
        name: now[name] if now[name].is_by_name and not now.is_on(name) and name != "chunked_architecture" else flag
        for name, flag in began.values.items()
    }
    return Flags(began.model_id or now.model_id, values)


def check_name(name: str) -> None:
    """Refuse what is no flag.

    Raises:
        ConfigError: naming the closest.
    """
    if name not in FLAGS:
        raise ConfigError(f"There is no flag {name!r}. {closest(name, FLAGS)}")
