"""``esper inspect``: what a checkpoint holds."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand


@dataclass(frozen=True)
class InspectCommand(Subcommand):
    """Print seeds, grafts and sizes of a checkpoint.

    Args:
        path: a run directory, or a checkpoint.
        as_json: whether to print JSON.
    """

    about = "show what a checkpoint holds: seeds, grafts, fossils, sizes, and what is under way"
    takes = "one run directory or checkpoint only"

    path: Path
    as_json: bool

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "path", metavar="DIR|CHECKPOINT", type=Path, help="run directory (its newest), or checkpoint"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        return cls(values["path"], values["json"])

    def do(self) -> bool:
        from esper.cli.inspecting import show

        show(self.path, as_json=self.as_json)
        return True
