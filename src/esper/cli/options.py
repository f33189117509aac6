"""The options of ``esper run``: one frozen dataclass, from which parser, help and configuration file follow."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from esper.cli.values import alternatives, fit
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest

MAX_SEED = 2**31 - 1
MAX_THREADS = 1024


def _option(default: Any, help_: str, metavar: str | None = None, shown: str | None = None) -> Any:
    return field(default=default, metadata={"help": help_, "metavar": metavar, "shown": shown})


@dataclass(frozen=True)
class Options:
    """What a run is to do. Checked where it is built.

    Attributes:
        growth: where, when and how much the host may grow; in the file only, as the mapping ``growth``.
    """

    data: str = _option("digits", "what to learn: digits, or the path of an .npz file with x, y", "digits|PATH.npz")
    seed: int = _option(0, "seed of the split of the data, first weights and order of batches", "N")
    epochs: int = _option(60, "passes over the training samples", "N")
    batch_size: int = _option(32, "samples of a batch", "N")
    lr: float = _option(5e-3, "peak learning rate (AdamW, cosine schedule)", "RATE")
    controls: bool = _option(True, "train the fair controls afterwards: the host trained on, and a static network")
    threads: int = _option(1, "threads of torch; tiny models are fastest with 1", "N")
    output: str | None = _option(None, "run directory", "DIR", "a new one, runs/DATA-SEED")
    config: str | None = _option(None, "YAML file with these options, besides a mapping 'growth'", "FILE", "none")
    resume: Literal["last"] | None = _option(
        None, "go on with the run in --output, or with the newest one under runs", "last", "start a new run"
    )
    growth: GrowthConfig = field(default_factory=GrowthConfig)

    def __post_init__(self) -> None:
        self._check("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}")
        for name in ("epochs", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("threads", 1 <= self.threads <= MAX_THREADS, f"1 to {MAX_THREADS}")
        self._check("lr", math.isfinite(self.lr) and self.lr > 0, "above 0 and finite")
        for name in ("data", "output", "config"):
            self._check(name, getattr(self, name) != "", "a name or path")

    def _check(self, name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise ConfigError(f"{name} must be {wanted}, not {getattr(self, name)!r}.")


INVOCATION = ("output", "config", "resume")
"""Options of one call; all others describe the run and are stored with it."""

_HINTS = get_type_hints(Options)
_GROWTH_HINTS = get_type_hints(GrowthConfig)
_ON_COMMAND_LINE = tuple(one for one in fields(Options) if one.name != "growth")
_IN_FILE = tuple(one.name for one in fields(Options) if one.name not in ("config", "resume"))


@dataclass(frozen=True)
class Request:
    """Options, and which of them were given rather than left at their defaults (growth settings as ``growth.NAME``)."""

    options: Options
    given: frozenset[str]


def parse(argv: Sequence[str] | None) -> Request:
    """Options from the command line, over those of the file that ``--config`` names, over the defaults.

    Raises:
        ConfigError: if any of it is wrong.
        SystemExit: after help was printed.
    """
    arguments, unknown = _parser().parse_known_args(argv)
    valid = [option for one in _ON_COMMAND_LINE for option in _names(one.name)]
    for word in unknown:
        if not word.startswith("-"):
            raise ConfigError(f"'esper run' takes options only, not {word!r}. See 'esper run --help'.")
        name = word.partition("=")[0]
        raise ConfigError(f"There is no option {name!r}. {closest(name, valid)}")
    line = {name: value for name, value in vars(arguments).items() if name != "command"}
    if getattr(arguments, "command", None) is None:
        raise ConfigError("Say what to do: 'esper run'. See 'esper --help'.")
    typed = {name: _from_line(name, value) for name, value in line.items()}
    values = read_file(Path(typed["config"])) if typed.get("config") else {}
    return request(values | typed)


def request(values: Mapping[str, Any]) -> Request:
    """Options from values of the right types; ``growth`` is a mapping here."""
    growth = dict(values.get("growth", {}))
    given = {name for name in values if name != "growth"} | {f"growth.{name}" for name in growth}
    seed = values.get("seed", Options.seed)
    try:
        config = GrowthConfig(**{"seed": seed} | growth)
    except ConfigError as error:
        raise ConfigError(f"growth: {error}") from error
    options = Options(**{name: value for name, value in values.items() if name != "growth"}, growth=config)
    if options.data.endswith(".npz"):
        options = Options(**{**vars(options), "data": os.path.abspath(options.data)})
    return Request(options, frozenset(given))


def read_file(path: Path) -> dict[str, Any]:
    """The values of a configuration file, checked and typed.

    Raises:
        ConfigError: if it cannot be read, is no mapping, or has an unknown key or a value of a wrong type.
    """
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("PyYAML is not installed: pip install 'esper-morphogenetic[run]'.") from error
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    values = _mapping(f"{path}", loaded)
    typed = {}
    for key, value in values.items():
        if key not in _IN_FILE:
            raise ConfigError(f"{path}: there is no option {key!r}. {closest(str(key), _IN_FILE)}")
        if key != "growth":
            typed[key] = fit(f"{path}: {key}", value, _HINTS[key])
    growth = _mapping(f"{path}: growth", values.get("growth"))
    for key in growth:
        if key not in _GROWTH_HINTS:
            raise ConfigError(f"{path}: growth has no setting {key!r}. {closest(str(key), _GROWTH_HINTS)}")
    typed_growth = {key: fit(f"{path}: growth.{key}", value, _GROWTH_HINTS[key]) for key, value in growth.items()}
    return typed | ({"growth": typed_growth} if growth else {})


def to_values(options: Options) -> dict[str, Any]:
    """Everything that describes the run as plain values, as :func:`read_file` reads them."""
    values = {name: value for name, value in vars(options).items() if name not in (*INVOCATION, "growth")}
    growth = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(options.growth).items()}
    return values | {"growth": growth}


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
    for one in _ON_COMMAND_LINE:
        text = f"{one.metadata['help']} (default: {_shown(one.default, one.metadata['shown'])})".replace("%", "%%")
        if _HINTS[one.name] is bool:
            action = argparse.BooleanOptionalAction
            run.add_argument(_names(one.name)[0], action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = one.metadata["metavar"]
            run.add_argument(_names(one.name)[0], metavar=metavar, default=argparse.SUPPRESS, help=text)
    return parser


def _growth_help() -> str:
    lines = ["settings of the mapping 'growth' in --config, with their defaults:"]
    for one in fields(GrowthConfig):
        assert one.default is not MISSING
        shown = "--seed" if one.name == "seed" else _shown(one.default, None)
        lines.append(f"  {one.name + ':':24}{shown}")
    return "\n".join(lines)


def _shown(default: Any, shown: str | None) -> str:
    if shown is not None:
        return shown
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return "null" if default is None else str(default)


def _names(name: str) -> list[str]:
    option = name.replace("_", "-")
    return [f"--{option}", f"--no-{option}"] if _HINTS[name] is bool else [f"--{option}"]


def _from_line(name: str, value: Any) -> Any:
    (hint,) = (one for one in alternatives(_HINTS[name]) if one is not type(None))
    if hint is int:
        try:
            return int(value)
        except ValueError:
            pass  # fit says what is wrong with it
    return fit(_names(name)[0], value, hint)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of options to values, not {type(value).__name__}.")
    return value
