"""What a command of the command line is."""

import argparse
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self


class Subcommand(ABC):
    """A command with what its user typed. Its module loads fast: what the work itself needs is imported in :meth:`do`.

    Attributes:
        about: what it does, for the help.
        takes: what may stand behind it, for the message about a word too many.
    """

    about: ClassVar[str]
    takes: ClassVar[str] = "options only"

    @staticmethod
    @abstractmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        """Tell the parser what it takes."""

    @classmethod
    @abstractmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        """The command of these values, by the names that :meth:`declare` gave them.

        Raises:
            ConfigError: if one is wrong.
        """

    @abstractmethod
    def do(self) -> bool:
        """Do it; gives whether all is well.

        Raises:
            EsperError: if it cannot be done.
        """
