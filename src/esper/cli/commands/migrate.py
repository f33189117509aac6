"""``esper migrate``: files of the five-state layer, for the new one."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class MigrateCommand(Subcommand):
    """Migrate checkpoints; none of them is changed.

    Args:
        checkpoints: files of ``esper.legacy.files.save``.
        output: folder for what is written; None writes beside each file.
    """

    about = "make checkpoints of the five-state layer ready for the new one; they stay as they are"
    takes = "checkpoints and options only"

    checkpoints: tuple[Path, ...]
    output: Path | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="five-state file")
        help_ = "folder that takes NAME.migrated of each (default: beside it)"
        parser.add_argument("--output", metavar="DIR", type=Path, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        return cls(tuple(values["checkpoints"]), values["output"])

    def do(self) -> bool:
        from esper.migration.files import migrate

        try:
            done = migrate(self.checkpoints, self.output)
        except CheckpointError as error:  # what was typed is what is wrong
            raise ConfigError(str(error)) from error
        for one in done:
            print(f"{one.source}: {'migrated to' if one.is_new else 'nothing to do, its migration is'} {one.output}")
            for name, told in one.layers.items():
                print(f"  {name or '(the layer)'}: {told}")
        return True
