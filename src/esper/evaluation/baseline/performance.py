"""A performance baseline: what was measured, where, of which commit; and its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from esper.contracts.errors import ConfigError
from esper.evaluation.baseline.adaptation import Adaptation, Spread
from esper.evaluation.baseline.cells import Cell, Setting
from esper.whole_file import write_whole

FORMAT = 1
"""Counts up with every change of the file or of what is measured, since figures of two formats compare with nothing."""

_HINT = "'esper baseline record' writes one."


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell, measured.

    Args:
        batch_size, seeds, channels: of the cell; ``seeds`` are those of its one layer.
        latency_ms: milliseconds of a call, by the names of :data:`~esper.evaluation.baseline.cells.WHAT`.
        samples_per_s: training samples a second, where nothing waits between steps.
        host_bytes: by which the process grew at most, from before the network was built until it had trained a little.
        device_bytes: of tensors on the GPU at the same time, at most.
        gpu_utilisation: share of the time in which the GPU computed, in [0, 1].
        state_bytes: of all seeds.
        unmeasured: why a figure is None, by its name.
    """

    batch_size: int
    seeds: int
    channels: int
    latency_ms: Mapping[str, Spread]
    samples_per_s: float
    host_bytes: int | None
    device_bytes: int | None
    gpu_utilisation: float | None
    state_bytes: int
    unmeasured: Mapping[str, str]

    @property
    def cell(self) -> Cell:
        """Which it is."""
        return Cell(self.batch_size, self.seeds)


@dataclass(frozen=True, slots=True)
class PerformanceBaseline:
    """What Esper's speed and size were, on one machine.

    Args:
        esper: its version.
        commit: of the sources; None where they lie in no git repository.
        is_clean: whether the sources were those of the commit; None without one.
        machine: hardware and versions.
        machine_id: tells machines apart.
        setting: device and threads.
        cells: what was measured.
        adaptation: what growth came to.
    """

    esper: str
    commit: str | None
    is_clean: bool | None
    machine: Mapping[str, Any]
    machine_id: str
    setting: Setting
    cells: tuple[CellResult, ...]
    adaptation: Adaptation

    def write(self, path: Path) -> None:
        """To a JSON file, whole or not at all."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "PerformanceBaseline":
        """From its file.

        Raises:
            ConfigError: if it is missing, damaged, or of another format.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as a baseline: {error}. {_HINT}") from error
        if not isinstance(told, dict) or "format" not in told:
            raise ConfigError(f"{path} is no baseline. {_HINT}")
        if told.pop("format") != FORMAT:
            raise ConfigError(f"{path} is a baseline of another format than {FORMAT}, the one of this version. {_HINT}")
        try:
            baseline: PerformanceBaseline = _typed(cls, told, "it")
        except _DamageError as error:
            raise ConfigError(f"{path} is a damaged baseline: {error}. {_HINT}") from error
        return baseline


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all."""
    write_whole(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


class _DamageError(Exception):
    """A value that is not of the type it should be of."""


def _typed(hint: Any, value: Any, where: str) -> Any:
    """A value from JSON as the type that a field of a dataclass declares."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (type(value) in (int, float) and hint is float) or type(value) is hint:
        return value
    if origin is UnionType:  # with None
        return None if value is None else _typed(inner[0], value, where)
    if origin in (Mapping, dict) and isinstance(value, dict):
        return {name: _typed(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        hints = get_type_hints(hint)
        if wrong := sorted(hints.keys() ^ value.keys()):
            raise _DamageError(f"{where} has no field {wrong[0]!r}, or should have none")
        return hint(**{name: _typed(hints[name], one, f"{where}.{name}") for name, one in value.items()})
    raise _DamageError(f"{where} cannot be {json.dumps(value)[:40]}")
