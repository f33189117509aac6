"""Feature flags: the words. What sets them is :mod:`esper.flags`, what they switch reads only what stands here."""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    name: str
    is_on: bool
    reason: str
    is_by_name: bool = False


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

    def __getitem__(self, name: str) -> Flag:
        if name not in self.values:
            raise ConfigError(f"There is no flag {name!r}. {closest(name, self.values)}")
        return self.values[name]


def check_name(name: str) -> None:
    """Refuse what is no flag.

    Raises:
        ConfigError: naming the closest.
    """
    if name not in FLAGS:
        raise ConfigError(f"There is no flag {name!r}. {closest(name, FLAGS)}")
