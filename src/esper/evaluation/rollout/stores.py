"""The flag that a rollout turns on, in its store."""

from pathlib import Path
from typing import Protocol

from esper.contracts.errors import ConfigError
from esper.contracts.flags import check_name
from esper.flags.edit import read, set_flag
from esper.flags.rule import Rule
from esper.flags.shares import ALL


class Store(Protocol):
    """All that a rollout asks of a store of flags. Whatever it sets may be set again."""

    def share(self, flag: str) -> float:
        """For how many of a hundred models a flag is on; 0 where it is switched off for all."""

    def set_share(self, flag: str, percent: float) -> None:
        """Let it be on for so many of a hundred models."""

    def off(self, flag: str) -> None:
        """Switch it off for all, whoever is allowed."""


class FlagFile:
    """A flagd file, as :mod:`esper.flags` keeps it.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def share(self, flag: str) -> float:
        """See :class:`Store`.

        Raises:
            ConfigError: if there is no such flag, or the file or the flag's rule in it is none of ours.
        """
        check_name(flag)
        if not self._path.exists():
            raise ConfigError(
                f"There is no store of flags {self._path}. Make it by 'esper flags set {flag} 0% --flags {self._path}'."
            )
        rule = read(self._path).rules.get(flag, Rule())
        if rule is None:
            raise ConfigError(
                f"The rule of {flag!r} in {self._path} is not of the shape that Esper writes, so no share can be set. "
                f"Take it out of the file, and set it by 'esper flags set {flag} 0%'."
            )
        return 0.0 if rule.is_switched_off else 100 * rule.share / ALL

    def set_share(self, flag: str, percent: float) -> None:
        """See :class:`Store`."""
        set_flag(self._path, flag, f"{percent:.3f}%")

    def off(self, flag: str) -> None:
        """See :class:`Store`."""
        set_flag(self._path, flag, "off")
