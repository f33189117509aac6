"""``esper ab A B``: which of two is better."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError


@dataclass(frozen=True)
class ABCommand(Subcommand):
    """Compare two things in pairs, until it is known which is better.

    Args:
        a, b: configuration files, commits, or implementations ``module:function``.
        measure: of commits: the configuration or implementation that is measured in each.
        repository: of the commits.
        plan: values of :class:`~esper.evaluation.ab.record.Plan`, its wishes as a mapping.
        output: directory; None takes ``ab/A-B``.
        timeout_s: after which a unit has failed.
    """

    about = "compare two configurations, commits or implementations in pairs, until it is known which is better"
    takes = "two things to compare and options only"

    a: str
    b: str
    measure: str | None
    repository: Path
    plan: dict[str, Any]
    output: Path | None
    timeout_s: float

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        what = "a configuration FILE.yaml of esper run, module:function, or a commit"
        parser.add_argument("a", metavar="A", help=what)
        parser.add_argument("b", metavar="B", help="another one of the same kind")
        help_ = "of two commits: what is measured in each, FILE.yaml or module:function"
        parser.add_argument("--measure", metavar="WHAT", help=help_)
        help_ = "git repository of the commits (default: .)"
        parser.add_argument("--repository", metavar="DIR", type=Path, default=Path(), help=help_)
        for name, text in (
            ("primary", "metrics that must be decided (default: all; of runs, loss and accuracy or R2)"),
            ("more", "metrics of which more is better, where their names do not tell"),
            ("less", "metrics of which less is better, where their names do not tell"),
        ):
            parser.add_argument(f"--{name}", metavar="NAME,...", default="", help=text)
        help_ = "differences up to it count as none: loss=0.01, latency_us=2%%; may be given several times"
        parser.add_argument("--margin", metavar="NAME=X", dest="margins", action="append", default=[], help=help_)
        help_ = "chance of any wrong verdict, over all looks and metrics (default: 0.05)"
        parser.add_argument("--alpha", metavar="P", type=float, default=0.05, help=help_)
        parser.add_argument("--max-pairs", metavar="N", type=int, default=30, help="pairs at most (default: 30)")
        parser.add_argument("--first-seed", metavar="N", type=int, default=0, help="of the first pair (default: 0)")
        parser.add_argument("--laps", metavar="N", type=int, default=20, help="timed for each unit (default: 20)")
        parser.add_argument("--null", action="store_true", help="A and B are the same, to check the set-up")
        help_ = "directory of the comparison; one that was interrupted goes on (default: ab/A-B)"
        parser.add_argument("--output", metavar="DIR", type=Path, help=help_)
        help_ = "seconds after which a unit has failed (default: 3600)"
        parser.add_argument("--timeout", metavar="S", type=float, default=3600.0, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        margins = {}
        for text in values["margins"]:
            name, equals, margin = text.partition("=")
            if not (name and equals and margin):
                raise ConfigError(f"--margin takes NAME=X, for example loss=0.01 or latency_us=2%, not {text!r}.")
            margins[name] = margin
        if not 0 < values["timeout"] < float("inf"):
            raise ConfigError(f"--timeout must be above 0 and finite, not {values['timeout']}.")
        names = {key: tuple(filter(None, values[key].split(","))) for key in ("primary", "more", "less")}
        plan = {key: values[key] for key in ("alpha", "max_pairs", "first_seed", "laps")}
        plan |= {"is_null": values["null"], "wishes": names | {"margins": margins}}
        a, b, output = values["a"], values["b"], values["output"]
        return cls(a, b, values["measure"], values["repository"], plan, output, values["timeout"])

    def do(self) -> bool:
        from esper.cli.comparing import compare

        return compare(self)
