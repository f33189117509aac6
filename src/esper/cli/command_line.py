"""The command line: its parser, its help, and the values it gives."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, get_origin

from esper.cli.configuration_file import read_file
from esper.cli.options import GROWTH_HINTS, HINTS, ON_COMMAND_LINE, Request, request
from esper.cli.values import alternatives, fit
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest

GROWTH_OPTIONS = {
    "layers": ("places that carry seeds: names, patterns, spans first:last, with commas between", "PATTERN,..."),
    "seeds_per_layer": ("seeds of each layer, at most its channels", "N"),
    "blueprints": ("what may grow, with commas between", "NAME,..."),
    "selection": ("what a blueprint is chosen for", "NAME"),
    "strategy": ("how grafts are blended in", "NAME"),
    "trial": ("round tries candidates in arms of their own, live grows in the run itself", "round|live"),
    "max_rounds": ("rounds of candidates; 0 never grows", "N"),
    "max_growth": ("bound on all grown parameters, relative to the host's", "FACTOR"),
}
"""Settings of growth that have an option of their own; all others can be set in the file."""

_SHOWN = {"layers": "chosen by itself", "strategy": "chosen by conditions"}


def parse(argv: Sequence[str] | None) -> Request | None:
    """Options from the command line, over those of the file that ``--config`` names, over the defaults.

    Returns:
        What ``esper run`` is asked to do; None for ``esper doctor``.

    Raises:
        ConfigError: if any of it is wrong.
        SystemExit: after help was printed.
    """
    arguments, unknown = _parser().parse_known_args(argv)
    command = getattr(arguments, "command", None)
    valid = ["--help"]
    if command != "doctor":
        valid += [option for one in ON_COMMAND_LINE for option in _names(one.name)] + list(map(_flag, GROWTH_OPTIONS))
    for word in unknown:
        if not word.startswith("-"):
            raise ConfigError(f"'esper {command}' takes options only, not {word!r}. See 'esper {command} --help'.")
        name = word.partition("=")[0]
        raise ConfigError(f"There is no option {name!r}. {closest(name, valid)}")
    if command is None:
        raise ConfigError("Say what to do: 'esper run' or 'esper doctor'. See 'esper --help'.")
    if command == "doctor":
        return None
    line = {name: value for name, value in vars(arguments).items() if name != "command"}
    growth = {name: _from_line(name, line.pop(name), GROWTH_HINTS) for name in GROWTH_OPTIONS if name in line}
    typed = {name: _from_line(name, value, HINTS) for name, value in line.items()}
    values = read_file(Path(typed["config"])) if typed.get("config") else {}
    merged = values.get("growth", {}) | growth
    return request(values | typed | ({"growth": merged} if merged else {}))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See '{self.prog} --help'.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="esper", description="Neural networks that grow while they train.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    about = "grow a network on real data and tell what that was worth against fair controls"
    run = commands.add_parser(
        "run",
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=_growth_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for one in ON_COMMAND_LINE:
        text = _help(one.metadata["help"], _shown(one.default, one.metadata["shown"]))
        if HINTS[one.name] is bool:
            action = argparse.BooleanOptionalAction
            run.add_argument(_flag(one.name), action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = one.metadata["metavar"]
            run.add_argument(_flag(one.name), metavar=metavar, default=argparse.SUPPRESS, help=text)
    growth = run.add_argument_group("growth")
    for name, (help_, metavar) in GROWTH_OPTIONS.items():
        text = _help(help_, _shown(getattr(GrowthConfig, name), _SHOWN.get(name)))
        growth.add_argument(_flag(name), metavar=metavar, default=argparse.SUPPRESS, help=text)
    about = "show versions and devices, and test in some seconds whether everything works here"
    commands.add_parser("doctor", help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False)
    return parser


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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _names(name: str) -> list[str]:
    flag = _flag(name)
    return [flag, f"--no-{flag[2:]}"] if HINTS[name] is bool else [flag]


def _from_line(name: str, value: Any, hints: dict[str, Any]) -> Any:
    """A value as its first plain type wants it; lists have commas."""
    hint = next(one for one in alternatives(hints[name]) if one is not type(None))
    if hint is int:
        try:
            return int(value)
        except ValueError:
            pass  # fit says what is wrong with it
    return fit(_flag(name), value.split(",") if get_origin(hint) is Sequence else value, hint)
