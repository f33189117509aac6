"""``esper compare``: several runs side by side."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

OUTPUT = Path("compare.html")


@dataclass(frozen=True)
class CompareCommand(Subcommand):
    """Print what sets runs apart, and write a page of it.

    Args:
        directories: of the runs, at least two.
        output: file to write.
    """

    about = "show several runs side by side: what they were told to do, and how they ended"
    takes = "run directories only"

    directories: tuple[Path, ...]
    output: Path

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="run directory, two at least")
        help_ = f"page to write (default: {OUTPUT})"
        parser.add_argument("--output", metavar="FILE", type=Path, default=OUTPUT, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        directories = values["directories"]
        if len(directories) < 2:
            raise ConfigError(f"'esper compare' needs two run directories at least, and not only {directories[0]}.")
        return cls(tuple(directories), values["output"])

    def do(self) -> bool:
        from esper.observability.compare import compare, text
        from esper.observability.record import read
        from esper.observability.report import comparison_page, write_page

        comparison = compare([read(directory) for directory in self.directories])
        page = write_page(self.output, comparison_page(comparison))
        print(f"{text(comparison)}\n\nWritten to {page}")
        return True
