"""``esper rollout``: turns a flag on step by step, and takes it back when runs get worse."""

import argparse
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

ACTIONS = {
    "start": "set the flag to the first share of the plan",
    "status": "print where the rollout stands; exit code 1 if it was taken back",
    "advance": "look at runs once, and take the next step or take the flag back if they say so; exit code 1 likewise",
    "rollback": "turn the flag off and end the rollout",
}
_OF_START = (
    "plan",
    "flags",
    "runs",
    "bus",
    "prometheus",
    "min_runs",
    "min_seconds",
    "worse_by",
    "more_errors",
    "patience",
    "stale",
)


@dataclass(frozen=True)
class RolloutCommand(Subcommand):
    """Roll a flag out.

    Args:
        action: one of :data:`ACTIONS`.
        values: all options by their names; those that were not given are None.
    """

    about = "turn a flag on step by step: " + ", ".join(ACTIONS)
    takes = "one action and options only"

    action: str
    values: dict[str, Any]

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
        parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=told)
        parser.add_argument("--state", metavar="DIR", required=True, help="directory of the rollout, with its audit")
        parser.add_argument("--flag", metavar="FLAG", help="which flag; for start")
        parser.add_argument("--plan", metavar="SHARES", help="percentages that rise: 1,10,25,50,75,100; for start")
        parser.add_argument("--flags", metavar="FILE", help="the store of flags, as of esper flags; for start")
        parser.add_argument("--runs", metavar="DIR", help="where the directories of the runs are; for start")
        parser.add_argument("--bus", metavar="URL", help="the bus that runs tell, in place of --runs; for start")
        parser.add_argument(
            "--prometheus", metavar="URL", help="one that scrapes the runs, in place of --runs; for start"
        )
        parser.add_argument("--min-runs", metavar="N", help="runs with the flag on, and off, for each step (default 5)")
        parser.add_argument("--min-seconds", metavar="S", help="that a step lasts at least (default 0)")
        parser.add_argument("--worse-by", metavar="PERCENT", help="that performance may be worse by (default 10)")
        parser.add_argument("--more-errors", metavar="POINTS", help="percentage points of runs (default 5)")
        parser.add_argument("--patience", metavar="S", help="after which data are missing (default 86400)")
        parser.add_argument("--stale", metavar="S", help="after which a silent run has crashed (default 900)")
        parser.add_argument(
            "--watch", metavar="S", help="advance: look every so many seconds until the rollout is over"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
        parser.add_argument("--why", metavar="TEXT", help="rollback: the reason, for the audit")

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        action, given = values["action"], {name for name, value in values.items() if value not in (None, False)}
        if action == "start":
            for name in ("flag", "plan", "flags"):
                if name not in given:
                    raise ConfigError(f"'esper rollout start' needs --{name}. See 'esper rollout --help'.")
            if len(given & {"runs", "bus", "prometheus"}) != 1:
                raise ConfigError(
                    "'esper rollout start' needs either --runs DIR or --bus URL or --prometheus URL: where runs are "
                    "heard of."
                )
        elif foreign := [name for name in _OF_START if name in given]:
            raise ConfigError(
                f"--{foreign[0].replace('_', '-')} belongs to 'esper rollout start', which keeps it in the state "
                f"directory. Leave it out."
            )
        for name, allowed in (("watch", ("advance",)), ("dry_run", ("start", "advance")), ("why", ("rollback",))):
            if name in given and action not in allowed:
                raise ConfigError(f"--{name.replace('_', '-')} belongs to 'esper rollout {allowed[-1]}'. Leave it out.")
        if {"watch", "dry_run"} <= given:
            raise ConfigError("--watch and --dry-run contradict each other: nothing would change. Leave one out.")
        return cls(action, values)

    def do(self) -> bool:
        from esper.cli import rolling

        match self.action:
            case "start":
                rolling.start(self.values)
                return True
            case "status":
                return rolling.status(self.values)
            case "advance":
                return rolling.advance(self.values)
            case _:
                rolling.take_back(self.values)
                return True
