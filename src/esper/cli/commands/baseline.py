"""``esper baseline``: how fast and how large Esper is here, and whether a change made it worse."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

ACTIONS = {
    "record": "measure this machine and write a baseline",
    "compare": "measure a commit and the working tree in turns, or show two baselines of one machine side by side",
}
OUTPUT = Path("baseline.json")
_ONLY_COMPARE = ("base", "threshold", "memory_threshold", "blocks", "seed", "null")
_ONLY_RECORD = ("runs",)


@dataclass(frozen=True)
class BaselineCommand(Subcommand):
    """Record a baseline, or compare.

    Args:
        action: one of :data:`ACTIONS`.
        files: two baselines, for ``compare`` without a base.
        base: a commit, or a baseline that stands for its commit.
        batch_sizes, seeds: of the cells; empty means those of the action.
        quick: one small cell only.
        device: cpu or cuda; None takes the GPU where there is one.
        threads: of torch.
        runs: run directories that tell what growth comes to; empty means that runs are grown.
        rules: what was said of when a change is a regression, by the names of ``Rules``.
        null: whether base and change are meant to be the same.
        output: JSON file to write; None writes none for ``compare``.
    """

    about = "record how fast and how large Esper is here, or compare a change with its base"
    takes = "record or compare, and for compare two baselines or --base"

    action: str
    files: tuple[Path, ...]
    base: str | None
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    quick: bool
    device: str | None
    threads: int
    runs: tuple[Path, ...]
    rules: dict[str, Any]
    null: bool
    output: Path | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
        parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=told)
        parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="compare: an old and a new baseline")
        help_ = "compare: the commit, or a baseline that was recorded at it, to measure the working tree against"
        parser.add_argument("--base", metavar="COMMIT", help=help_)
        parser.add_argument("--batch-sizes", metavar="N,N", help="samples of a batch (default: 32,64,128,256)")
        parser.add_argument("--seeds", metavar="N,N", help="of the layer (default: 100,1000,10000)")
        parser.add_argument("--quick", action="store_true", help="one small cell, in seconds")
        parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
        parser.add_argument("--threads", metavar="N", type=int, default=1, help="of torch (default: 1)")
        help_ = "record: a run directory to tell what growth comes to, any number of times (default: grow three runs)"
        parser.add_argument("--run", metavar="DIR", dest="runs", action="append", type=Path, help=help_)
        help_ = "compare: slowdown from which on it is a regression, in percent (default: 5)"
        parser.add_argument("--threshold", metavar="PERCENT", type=float, help=help_)
        help_ = "compare: likewise for growth of memory (default: 5)"
        parser.add_argument("--memory-threshold", metavar="PERCENT", type=float, help=help_)
        help_ = "compare: blocks after which a latency is left undecided (default: 100)"
        parser.add_argument("--blocks", metavar="N", type=int, help=help_)
        parser.add_argument("--seed", metavar="N", type=int, help="compare: of the order within blocks (default: 0)")
        help_ = "compare: base and working tree are meant to be the same, to see what the machine makes of that"
        parser.add_argument("--null", action="store_true", default=None, help=help_)
        help_ = f"JSON to write (default: {OUTPUT} for record, none for compare)"
        parser.add_argument("--output", metavar="FILE", type=Path, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        action, files, base = values["action"], tuple(values["files"]), values["base"]
        foreign = _ONLY_RECORD if action == "compare" else _ONLY_COMPARE
        if given := [name for name in foreign if values[name] is not None]:
            option = "--run" if given[0] == "runs" else f"--{given[0].replace('_', '-')}"
            raise ConfigError(f"'esper baseline {action}' has no use for {option}. Leave it out.")
        if action == "record" and files:
            raise ConfigError(f"'esper baseline record' takes options only, not {files[0]}. --output names its file.")
        if action == "compare" and (base is None) != (len(files) == 2):
            raise ConfigError(
                "'esper baseline compare' needs either --base COMMIT, to measure, or two baselines of one machine, to "
                f"show side by side; not {len(files)} files {'without' if base is None else 'and'} --base."
            )
        rules = {name: values[name] for name in ("blocks", "seed") if values[name] is not None}
        for name in ("threshold", "memory_threshold"):
            if values[name] is not None:
                rules[name] = values[name] / 100
        output = values["output"] or (OUTPUT if action == "record" else None)
        if output is not None and not output.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
        batch_sizes, seeds = _numbers("--batch-sizes", values["batch_sizes"]), _numbers("--seeds", values["seeds"])
        if values["quick"] and (batch_sizes or seeds):
            raise ConfigError("--quick measures one small cell: leave out --batch-sizes and --seeds, or --quick.")
        return cls(
            action,
            files,
            base,
            batch_sizes,
            seeds,
            values["quick"],
            values["device"],
            values["threads"],
            tuple(values["runs"] or ()),
            rules,
            bool(values["null"]),
            output,
        )

    def do(self) -> bool:
        from esper.cli.baselines import compare_sides, record_here, show_beside

        if self.action == "record":
            return record_here(self)
        return compare_sides(self) if self.base is not None else show_beside(*self.files)


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    words = [] if text is None else text.split(",")
    if not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} takes whole numbers from 1 on with commas between, such as 32,256, not {text!r}.")
    return tuple(dict.fromkeys(map(int, words)))
