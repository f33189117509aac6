"""``esper report``: one run as a page."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand


@dataclass(frozen=True)
class ReportCommand(Subcommand):
    """Write the page of a run, finished or not.

    Args:
        directory: of the run.
        output: file to write; None writes ``report.html`` there.
    """

    about = "write what happened in a run as one page, report.html, that opens anywhere"
    takes = "one run directory only"

    directory: Path
    output: Path | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIR", type=Path, help="run directory")
        help_ = "page to write (default: report.html in DIR)"
        parser.add_argument("--output", metavar="FILE", type=Path, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        return cls(values["directory"], values["output"])

    def do(self) -> bool:
        from esper.observability.record import read
        from esper.observability.report import REPORT, report, write_page
        from esper.observability.story import story

        record = read(self.directory)
        page = write_page(self.output or self.directory / REPORT, report(record))
        print(f"{story(record).headline}\nWritten to {page}")
        return True
