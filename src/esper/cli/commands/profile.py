"""``esper profile``: what Esper costs in a step."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.run import RunCommand, declare_options
from esper.cli.commands.subcommand import Subcommand
from esper.cli.options import Options
from esper.contracts.errors import ConfigError

TRACE = Path("trace.json")

OPTIONS = (
    *("data", "label", "task", "layout", "host", "seed", "epochs", "batch_size", "steps_per_epoch", "lr", "schedule"),
    *("threads", "device", "precision", "host_settings", "config"),
)
"""Those of a run that change what a step is; others in a configuration file are left aside."""

OF_GROWTH = ("layers", "exclude", "colonies", "seeds_per_layer", "blueprints", "strategy", "max_growth", "max_latency")
"""Likewise."""


@dataclass(frozen=True)
class ProfileCommand(Subcommand):
    """Time and profile some steps of a run.

    Args:
        options: of the run.
        steps: of each kind.
        trace: file for the Chrome trace.
    """

    about = "show what Esper costs in a step of such a run, by what it does, and write a trace"

    options: Options
    steps: int
    trace: Path

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        declare_options(parser, OPTIONS, OF_GROWTH)
        own = parser.add_argument_group("profile")
        own.add_argument("--steps", metavar="N", type=int, default=48, help="steps of each kind (default: 48)")
        help_ = f"file for the Chrome trace (default: {TRACE})"
        own.add_argument("--trace", metavar="FILE", type=Path, default=TRACE, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        own = {name: values.pop(name) for name in ("steps", "trace")}
        if own["steps"] < 1:
            raise ConfigError(f"--steps must be at least 1, not {own['steps']}.")
        trace = own["trace"]
        if not trace.absolute().parent.is_dir():
            raise ConfigError(f"--trace {trace}: there is no directory {trace.parent}. Make it first.")
        if trace.is_dir():
            raise ConfigError(f"--trace {trace} is a directory. Name a file in it.")
        return cls(RunCommand.from_line(values).options, **own)

    def do(self) -> bool:
        from esper.cli.profiling import show

        show(self.options, self.steps, self.trace)
        return True
