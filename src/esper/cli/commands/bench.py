"""``esper bench``: how fast Esper is on this machine."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError, closest

SECTIONS = (
    "agreement",
    "dormant",
    "seeds",
    "grafts",
    "shares",
    "sweeps",
    "step",
    "compiled-step",
    "graphed-step",
    "compiled-graphed-step",
)


@dataclass(frozen=True)
class BenchCommand(Subcommand):
    """Measure, and print a table for every target.

    Args:
        device: as ``esper run --device``.
        only: sections to measure.
        is_quick: whether few cases and repeats are enough.
        output: a file for the figures.
    """

    about = "measure what seeds and grafts cost on this machine, beside the bare model and the targets"

    device: str
    only: tuple[str, ...]
    is_quick: bool
    output: Path | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--device", metavar="auto|cpu|cuda[:N]", default="auto", help="where to measure (default: auto)"
        )
        help_ = f"what to measure: {', '.join(SECTIONS)} (default: all)"
        parser.add_argument("--only", metavar="NAME,...", default=",".join(SECTIONS), help=help_)
        parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: a first look")
        parser.add_argument("--output", metavar="FILE", type=Path, help="a JSON file for the figures (default: none)")

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        only = tuple(name.strip() for name in values["only"].split(",") if name.strip())
        for name in only:
            if name not in SECTIONS:
                raise ConfigError(f"--only {name}: there is no such part. {closest(name, SECTIONS)}")
        output = values["output"]
        if output is not None and not output.absolute().parent.is_dir():
            raise ConfigError(f"--output {output}: there is no directory {output.parent}. Make it first.")
        return cls(values["device"], only or SECTIONS, values["quick"], output)

    def do(self) -> bool:
        from esper.cli.benching import show

        show(self.device, self.only, self.output, is_quick=self.is_quick)
        return True
