"""``esper sweep FILE``: a population of runs."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.cli.sweep_file import SweepFile, read_sweep
from esper.contracts.errors import ConfigError, closest

ENGINES = ("pool", "ray")


@dataclass(frozen=True)
class SweepCommand(Subcommand):
    """Run every trial of a sweep that is not finished yet, and tell which settings are best.

    Args:
        wanted: what the file says, with what was said otherwise on the line.
        engine: what runs the trials.
    """

    about = "run many runs over settings, hosts, data and seeds, and tell which are best"
    takes = "one file and options only"

    wanted: SweepFile
    engine: str

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="YAML file with the space of settings")
        help_ = "what runs the trials: processes of its own, or Ray Tune (default: pool)"
        parser.add_argument("--engine", metavar="pool|ray", default="pool", help=help_)
        help_ = "trials at a time (default: the file's, or one for each core)"
        parser.add_argument("--workers", metavar="N", type=int, help=help_)
        help_ = "directory of the sweep; one that was interrupted goes on (default: the file's, or sweeps/FILE)"
        parser.add_argument("--output", metavar="DIR", type=Path, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        if values["engine"] not in ENGINES:
            raise ConfigError(f"There is no engine {values['engine']!r}. {closest(values['engine'], ENGINES)}")
        if values["workers"] is not None and values["workers"] < 1:
            raise ConfigError(f"--workers must be at least 1, not {values['workers']}.")
        given = {name: values[name] for name in ("workers", "output") if values[name] is not None}
        return cls(replace(read_sweep(values["file"]), **given), values["engine"])

    def do(self) -> bool:
        from esper.cli.sweeping import sweep  # torch is not loaded before the file is known to be right

        return sweep(self)
