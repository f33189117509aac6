"""``esper run``: its options over those of a configuration file over the defaults."""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, get_origin

from esper.cli.commands.subcommand import Subcommand
from esper.cli.configuration_file import read_file
from esper.cli.options import (
    ELSEWHERE,
    GROWTH_HINTS,
    HINTS,
    ON_COMMAND_LINE,
    PRESENTATION,
    Options,
    Request,
    flag,
    request,
)
from esper.cli.run_directory import locate
from esper.cli.values import alternatives, fit, is_decimal
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError

GROWTH_OPTIONS = {
    "layers": ("places that carry seeds: names, patterns, spans first:last, with commas between", "PATTERN,..."),
    "exclude": ("places that carry no seeds, whoever chose them, with commas between", "PATTERN,..."),
    "colonies": ("places at several modules at once that carry seeds: patterns with commas between", "PATTERN,..."),
    "seeds_per_layer": ("seeds of each layer, at most its channels", "N"),
    "blueprints": ("what may grow, with commas between", "NAME,..."),
    "selection": ("what a blueprint is chosen for", "NAME"),
    "strategy": ("how grafts are blended in", "NAME"),
    "trial": ("round tries candidates in arms of their own, live grows in the run itself", "round|live"),
    "max_rounds": ("rounds of candidates; 0 never grows", "N"),
    "min_targets": ("samples, or tokens, to learn from for each parameter, if growth is to be tried; 0 tries", "N"),
    "max_growth": ("bound on all grown parameters, relative to the host's", "FACTOR"),
    "max_latency": ("bound on the multiply-adds of all that grows, relative to the host's", "FACTOR"),
    "max_train_flops": ("bound on the training FLOPs of the run with growth, relative to those without", "FACTOR"),
}
"""Settings of growth that have an option of their own; all others can be set in the file."""

_SHOWN = {
    "layers": "chosen by itself",
    "exclude": "none",
    "colonies": "all that the model has",
    "min_targets": "what was measured",
    "strategy": "chosen by conditions",
    "max_latency": "none",
    "max_train_flops": "none",
}


@dataclass(frozen=True)
class RunCommand(Subcommand):
    """Start a run, or go on with one.

    Args:
        asked: the options, and which of them were given.
    """

    about = "grow a network on real data and tell what that was worth against fair controls"

    asked: Request

    @property
    def options(self) -> Options:
        """What was asked for; a run that is resumed has those it was started with."""
        return self.asked.options

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        declare_options(parser, [one.name for one in ON_COMMAND_LINE])

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        line = dict(values)
        growth = {name: _from_line(name, line.pop(name), GROWTH_HINTS) for name in GROWTH_OPTIONS if name in line}
        typed = {name: _from_line(name, value, HINTS) for name, value in line.items()}
        stored = read_file(Path(typed["config"])) if typed.get("config") else {}
        merged = stored.get("growth", {}) | growth
        return cls(request(stored | typed | ({"growth": merged} if merged else {})))

    def do(self) -> bool:
        options, directory = locate(self.asked)
        from esper.cli.run import run  # torch is not loaded before the options are known to be right

        run(replace(options, **{name: getattr(self.options, name) for name in (*ELSEWHERE, *PRESENTATION)}), directory)
        return True


def declare_options(
    parser: argparse.ArgumentParser, names: Sequence[str], of_growth: Collection[str] = GROWTH_OPTIONS
) -> None:
    """Tell a parser of these options of a run, and of these of growth."""
    parser.epilog, parser.formatter_class = _growth_help(), argparse.RawDescriptionHelpFormatter
    for one in ON_COMMAND_LINE:
        if one.name not in names:
            continue
        text = _help(one.metadata["help"], _shown(one.default, one.metadata["shown"]))
        declare = partial(parser.add_argument, flag(one.name), dest=one.name, default=argparse.SUPPRESS, help=text)
        if HINTS[one.name] is not bool:
            declare(metavar=one.metadata["metavar"])
        else:
            declare(action=argparse.BooleanOptionalAction if one.default else "store_true")
    growth = parser.add_argument_group("growth")
    for name, (help_, metavar) in GROWTH_OPTIONS.items():
        if name not in of_growth:
            continue
        text = _help(help_, _shown(getattr(GrowthConfig, name), _SHOWN.get(name)))
        growth.add_argument(flag(name), metavar=metavar, default=argparse.SUPPRESS, help=text)


def _help(text: str, default: str) -> str:
    return f"{text} (default: {default})".replace("%", "%%")


def _growth_help() -> str:
    lines = ["settings of the mapping 'growth' in --config, with their defaults:"]
    for one in fields(GrowthConfig):
        assert one.default is not MISSING
        shown = "--seed" if one.name == "seed" else _shown(one.default, None)
        lines.append(f"  {one.name + ':':30}{shown}")
    return "\n".join(lines)


def _shown(default: Any, shown: str | None) -> str:
    if shown is not None:
        return shown
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return "null" if default is None else str(default)


def _from_line(name: str, value: Any, hints: dict[str, Any]) -> Any:
    """A value as its first plain type wants it; lists have commas."""
    hint = next(one for one in alternatives(hints[name]) if one is not type(None))
    if hint is int and is_decimal(value) and value.lstrip("+-").isdecimal():
        return int(value)
    if get_origin(hint) is Mapping:
        return _settings(flag(name), value)
    return fit(flag(name), value.split(",") if get_origin(hint) is Sequence else value, hint)


def _settings(name: str, value: str) -> dict[str, int | tuple[int, ...]]:
    """``width=64,widths=4-6-8`` as a mapping."""
    found: dict[str, int | tuple[int, ...]] = {}
    for part in value.split(","):
        setting, _, number = part.partition("=")
        if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})*", number) or not setting:
            raise ConfigError(
                f"{name}: {part!r} is no setting. Write whole numbers, such as width=64,heads=4 or hidden=32-16."
            )
        if setting in found:
            raise ConfigError(f"{name}: {setting} stands twice. Give it once.")
        numbers = tuple(map(int, number.split("-")))
        found[setting] = numbers if len(numbers) > 1 else numbers[0]
    return found
