"""The file of ``esper sweep``: options of ``esper run``, of which some are left open, and how they are tried."""

import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from esper.cli.configuration_file import mapping, read_mapping, to_values
from esper.cli.options import GROWTH_HINTS, HINTS, IN_FILE, request
from esper.cli.values import alternatives, fit
from esper.contracts.errors import ConfigError, closest
from esper.evaluation.sweep.plan import METRICS, Asha, Plan, Trial, flat

KEYS = {
    "samples": int,
    "max_trials": int,
    "metric": str,
    "mode": str,
    "workers": int,
    "output": str,
}
"""What stands beside ``space`` and ``asha``, with its type."""

ASHA_KEYS = {"grace_epochs": int, "reduction_factor": int}
FORMS = ("choice", "uniform", "log_uniform")
MAX_TRIALS = 256
IN_SPACE = tuple(name for name in IN_FILE if name != "output")


@dataclass(frozen=True)
class SweepFile:
    """What a file asks for.

    Args:
        plan: the sweep.
        workers: trials at a time.
        output: directory of the sweep.
    """

    plan: Plan
    workers: int
    output: Path


@dataclass(frozen=True)
class _Range:
    """An option that is drawn.

    Args:
        low, high: bounds, both included.
        is_log: whether its logarithm is drawn evenly.
        is_whole: whether it is a whole number.
    """

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, source: random.Random) -> float | int:
        """A value, with four significant digits: it is to be read, and typed again."""
        if self.is_whole and not self.is_log:
            return source.randint(int(self.low), int(self.high))
        if self.is_log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        value = round(value) if self.is_whole else float(f"{value:.4g}")
        return type(value)(min(max(value, self.low), self.high))


def read_sweep(path: Path) -> SweepFile:
    """The sweep of a file, of which every trial is one that ``esper run`` takes, as far as its options tell.

    Raises:
        ConfigError: if the file or anything in it is wrong.
    """
    values = read_mapping(path)
    for key in values:
        if key not in (*KEYS, "space", "asha"):
            more = " Options of esper run stand in the mapping 'space'." if key in IN_FILE else ""
            raise ConfigError(f"{path}: there is no key {key!r}.{more} {closest(key, [*KEYS, 'space', 'asha'])}")
    typed = {key: fit(f"{path}: {key}", value, KEYS[key]) for key, value in values.items() if key in KEYS}
    for key, least in (("samples", 1), ("max_trials", 1), ("workers", 1)):
        if typed.get(key, least) < least:
            raise ConfigError(f"{path}: {key} must be at least {least}, not {typed[key]}.")
    if not values.get("space"):
        raise ConfigError(
            f"{path}: there is no space. Name options of esper run with their values in a mapping 'space'."
        )
    settings = _settings(path, mapping(f"{path}: space", values["space"]))
    trials = _trials(path, settings, typed.get("samples"), typed.get("max_trials", MAX_TRIALS))
    metric = typed.get("metric", "held_out_loss")
    asha = _asha(path, values)
    try:
        plan = Plan(trials, metric, typed.get("mode", METRICS.get(metric, "min")), asha)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    output = Path(typed.get("output") or Path("sweeps") / path.stem)
    return SweepFile(plan, typed.get("workers") or os.cpu_count() or 1, output)


def _asha(path: Path, values: Mapping[str, Any]) -> Asha | None:
    if values.get("asha") is None:
        return None
    given = mapping(f"{path}: asha", values["asha"])  # an empty one takes all defaults
    for key in given:
        if key not in ASHA_KEYS:
            raise ConfigError(f"{path}: asha has no setting {key!r}. {closest(key, ASHA_KEYS)}")
    typed = {key: fit(f"{path}: asha.{key}", value, ASHA_KEYS[key]) for key, value in given.items()}
    try:
        return Asha(**typed)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _settings(path: Path, space: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the space by name: a list of values, or a range."""
    found = {}
    growth = mapping(f"{path}: space: growth", space.get("growth"))
    for key, value in space.items():
        if key not in IN_SPACE:
            raise ConfigError(f"{path}: space: there is no option {key!r}. {closest(key, IN_SPACE)}")
        if key != "growth":
            found[key] = _setting(f"{path}: space: {key}", value, HINTS[key])
    for key, value in growth.items():
        if key not in GROWTH_HINTS:
            raise ConfigError(f"{path}: space: growth has no setting {key!r}. {closest(key, GROWTH_HINTS)}")
        found[f"growth.{key}"] = _setting(f"{path}: space: growth.{key}", value, GROWTH_HINTS[key])
    return found


def _setting(name: str, value: Any, hint: Any) -> Any:
    kinds = {get_origin(one) or one for one in alternatives(hint)}
    if isinstance(value, list) and Sequence not in kinds:
        return _choice(name, value, hint)
    if isinstance(value, dict) and (Mapping not in kinds or set(value) & set(FORMS)):
        if len(value) != 1:
            raise ConfigError(f"{name} must be one of {', '.join(FORMS)} with its values, not {value!r}.")
        ((form, given),) = value.items()
        if form not in FORMS:
            raise ConfigError(f"{name}: there is no form {form!r}. {closest(form, FORMS)}")
        return _choice(name, given, hint) if form == "choice" else _range(name, given, kinds, is_log=form != "uniform")
    return [fit(name, value, hint)]


def _choice(name: str, values: Any, hint: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ConfigError(f"{name}: a choice takes a list of values, not {values!r}.")
    if not values:
        raise ConfigError(f"{name} is an empty list. Name at least one value.")
    found: list[Any] = []
    for value in (fit(name, one, hint) for one in values):
        if value in found:
            raise ConfigError(f"{name}: {value!r} stands twice. Name it once; for more runs of it name more seeds.")
        found.append(value)
    return found


def _range(name: str, bounds: Any, kinds: set[Any], *, is_log: bool) -> _Range:
    is_whole = float not in kinds
    if is_whole and int not in kinds:
        raise ConfigError(f"{name} is no number, and has no range. Name its values in a list.")
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ConfigError(f"{name}: a range takes a list of two numbers, the least and the greatest, not {bounds!r}.")
    low, high = (fit(name, bound, int if is_whole else float) for bound in bounds)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"{name}: a range goes from the least to the greatest, both finite, not from {low} to {high}."
        )
    if is_log and low <= 0:
        raise ConfigError(f"{name}: log_uniform has no range that begins at {low}. Begin above 0, or take uniform.")
    return _Range(low, high, is_log, is_whole)


def _trials(path: Path, settings: Mapping[str, Any], samples: int | None, most: int) -> tuple[Trial, ...]:
    ranges = {name: one for name, one in settings.items() if isinstance(one, _Range)}
    if ranges and samples is None:
        raise ConfigError(
            f"{path}: {', '.join(ranges)} is drawn from a range. Say how many are to be drawn, for example samples: 20."
        )
    if samples is not None and not ranges:
        raise ConfigError(f"{path}: samples is how many are drawn from ranges, but the space has none. Leave it out.")
    choices = {name: one for name, one in settings.items() if name not in ranges}
    count = math.prod(map(len, choices.values())) * (samples or 1)
    if count > most:
        raise ConfigError(
            f"{path}: these are {count:,} trials, more than max_trials, {most:,}. Name fewer values, or raise "
            "max_trials."
        )
    return tuple(_made(path, settings, choices, ranges, samples or 1))


def _made(
    path: Path,
    settings: Mapping[str, Any],
    choices: Mapping[str, list[Any]],
    ranges: Mapping[str, _Range],
    samples: int,
) -> Iterator[Trial]:
    """All combinations of the choices, with each draw: every draw meets the same seeds."""
    open_ = [name for name, one in settings.items() if name in ranges or len(one) > 1]
    sources = {name: random.Random(name) for name in ranges}  # its own: another range more or less changes nothing
    number = itertools.count()
    for _ in range(samples):
        drawn = {name: one.draw(sources[name]) for name, one in ranges.items()}
        for combination in itertools.product(*choices.values()):
            given = dict(zip(choices, combination, strict=True)) | drawn
            parameters = {name: given[name] for name in open_}
            try:
                values = to_values(request(_nested({"controls": False} | given)).options)
            except ConfigError as error:
                told = ", ".join(f"{name} {value}" for name, value in parameters.items())
                raise ConfigError(f"{path}: space{told and f', with {told}'}: {error}") from error
            yield Trial(next(number), parameters | {n: flat(values)[n] for n in parameters}, values)


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a configuration file holds them."""
    growth = {name.removeprefix("growth."): one for name, one in given.items() if name.startswith("growth.")}
    plain = {name: value for name, value in given.items() if not name.startswith("growth.")}
    return plain | ({"growth": growth} if growth else {})
