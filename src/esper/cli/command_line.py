"""The command line: its commands, their help, and one clear message for whatever is wrong with it."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from esper.cli.commands.ab import ABCommand
from esper.cli.commands.baseline import BaselineCommand
from esper.cli.commands.bench import BenchCommand
from esper.cli.commands.bus import BusCommand
from esper.cli.commands.compare import CompareCommand
from esper.cli.commands.doctor import DoctorCommand
from esper.cli.commands.exporter import ExporterCommand
from esper.cli.commands.flags import FlagsCommand
from esper.cli.commands.inspect import InspectCommand
from esper.cli.commands.migrate import MigrateCommand
from esper.cli.commands.profile import ProfileCommand
from esper.cli.commands.report import ReportCommand
from esper.cli.commands.rollout import RolloutCommand
from esper.cli.commands.run import RunCommand
from esper.cli.commands.subcommand import Subcommand
from esper.cli.commands.sweep import SweepCommand
from esper.cli.commands.tamiyo import TamiyoCommand
from esper.cli.commands.watch import WatchCommand
from esper.contracts.errors import ConfigError, closest

COMMANDS: dict[str, type[Subcommand]] = {
    "run": RunCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "inspect": InspectCommand,
    "profile": ProfileCommand,
    "bench": BenchCommand,
    "doctor": DoctorCommand,
    "tamiyo": TamiyoCommand,
    "bus": BusCommand,
    "flags": FlagsCommand,
    "migrate": MigrateCommand,
    "ab": ABCommand,
    "sweep": SweepCommand,
    "rollout": RolloutCommand,
    "baseline": BaselineCommand,
    "exporter": ExporterCommand,
    "watch": WatchCommand,
}


def parse(argv: Sequence[str] | None) -> Subcommand:
    """The command that is asked for.

    Args:
        argv: what was typed behind ``esper``; None takes it from the process.

    Raises:
        ConfigError: if any of it is wrong.
        SystemExit: after help was printed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        offered = ", ".join(f"'esper {name}'" for name in COMMANDS)
        raise ConfigError(f"Say what to do: {offered}. See 'esper --help'.")
    name = words[0]
    parser, parsers = _parsers()
    if name in parser.option_names:
        parser.print_help()
        raise SystemExit
    if name.startswith("-"):
        _refuse(name, ["--help"])
    if name not in COMMANDS:
        raise ConfigError(f"There is no command {name!r}. {closest(name, COMMANDS)}")
    command = COMMANDS[name]
    arguments, unknown = parsers[name].parse_known_args(words[1:])
    for word in unknown:
        if not word.startswith("-"):
            raise ConfigError(f"'esper {name}' takes {command.takes}, not {word!r}. See 'esper {name} --help'.")
        _refuse(word, [one for one in parsers[name].option_names if one.startswith("--")])
    return command.from_line(vars(arguments))


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-\d")  # -5% is a value too: whoever takes it says what is wrong

    @property
    def option_names(self) -> list[str]:
        """All options; argparse has no public list of them."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See '{self.prog} --help'.")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the whole line, for its help, and one for each command."""
    parser = _Parser(prog="esper", description="Neural networks that grow while they train.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    parsers = {}
    for name, command in COMMANDS.items():
        description = f"{command.about[0].upper()}{command.about[1:]}."
        parsers[name] = commands.add_parser(name, help=command.about, description=description, allow_abbrev=False)
        command.declare(parsers[name])
    return parser, parsers


def _refuse(word: str, valid: list[str]) -> NoReturn:
    name = word.partition("=")[0]
    raise ConfigError(f"There is no option {name!r}. {closest(name, valid)}")
