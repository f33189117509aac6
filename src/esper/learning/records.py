"""What was collected, on disk: one small file for each task, whole or not there.

Observations are kept as they were, so that what the controller sees in them may change without collecting anew.
"""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, DataError
from esper.contracts.reports import Observation
from esper.whole_file import write_whole

try:
    import msgspec
except ModuleNotFoundError as error:
    raise ConfigError("Records need msgspec: pip install 'esper-morphogenetic[learn]'.") from error

SUFFIX = ".record"


class Seen(msgspec.Struct, frozen=True):
    """A boundary.

    Args:
        boundary: its number.
        observation: what there was to see.
        heuristic: index of the legal action that the heuristic would take; None where it would wait, or was not asked.
    """

    boundary: int
    observation: Observation
    heuristic: int | None = None


class Tried(msgspec.Struct, frozen=True):
    """A run that differs from another one by its last action.

    Args:
        seen: index among the record's boundaries, of that at which it was taken.
        action: its index among the legal actions there.
        without: index of the run without it; None for the one that never grew.
        is_adopted: whether the graft beat its twin.
        saved: share of the test loss, at equal FLOPs.
        flops: relative to the run that never grew.
    """

    seen: int
    action: int
    without: int | None
    is_adopted: bool
    saved: float
    flops: float


class Record(msgspec.Struct, frozen=True):
    """What was tried on a task.

    Args:
        family: of the task.
        seed: that it was drawn from.
        config: how it might grow.
        seen: boundaries; first those of the run that never grew, in their order.
        tried: runs.
        heuristic: share of the loss that the heuristic saved, and its FLOPs relative to the run that never grew; None
            where it was not run.
        seconds: of one core, that collecting took.
    """

    family: str
    seed: int
    config: GrowthConfig
    seen: list[Seen]
    tried: list[Tried]
    heuristic: tuple[float, float] | None
    seconds: float

    def saved_without(self, one: Tried) -> float:
        """What was saved by the run that differs from one by its last action."""
        return 0.0 if one.without is None else self.tried[one.without].saved


def write(record: Record, folder: Path) -> None:
    """Into a file of its own."""
    write_whole(path_of(folder, record.seed), zlib.compress(msgspec.msgpack.encode(record)))


def path_of(folder: Path, seed: int) -> Path:
    """Where the record of a seed is."""
    return folder / f"{seed:08d}{SUFFIX}"


def read(folders: Iterable[Path]) -> list[Record]:
    """All records of some folders, in the order of their seeds.

    Raises:
        DataError: if there is none, or one cannot be read.
    """
    folders = list(folders)
    paths = sorted(path for folder in folders for path in folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise DataError(f"There are no records in {', '.join(map(str, folders))}. Collect some (esper tamiyo collect).")
    return [_read(path) for path in paths]


def _read(path: Path) -> Record:
    try:
        return msgspec.msgpack.decode(zlib.decompress(path.read_bytes()), type=Record)
    except (OSError, zlib.error, msgspec.MsgspecError) as error:
        raise DataError(f"{path} is no record that can be read: {error}. Delete it, or collect it once more.") from None


def headroom(records: Sequence[Record]) -> dict[str, Any]:
    """What could be won, and what the heuristic wins: means over tasks, in shares of the loss.

    Returns:
        ``tasks``, those at which something could be done; ``heuristic`` and its ``heuristic_flops`` beside the run that
        never grew; ``best``, of the runs that were tried and never growing; ``never_is_best``, a share of tasks;
        ``adopted``, a share of the grafts that were tried; ``pays``, the share of those that save something beside the
        same run without them.

    Raises:
        DataError: if nothing was tried in any of them.
    """
    open_ones = [one for one in records if one.tried and one.heuristic is not None]
    if not open_ones:
        raise DataError("In none of the records could anything be tried. Collect more.")
    best = [max(0.0, *(run.saved for run in one.tried)) for one in open_ones]
    known = [one.heuristic for one in open_ones if one.heuristic is not None]
    adopted = [run.saved > one.saved_without(run) for one in open_ones for run in one.tried if run.is_adopted]
    return {
        "tasks": len(open_ones),
        "heuristic": float(np.mean([saved for saved, _ in known])),
        "heuristic_flops": float(np.mean([flops - 1 for _, flops in known])),
        "best": float(np.mean(best)),
        "never_is_best": float(np.mean([one == 0.0 for one in best])),
        "adopted": float(np.mean([run.is_adopted for one in open_ones for run in one.tried])),
        "pays": float(np.mean(adopted)) if adopted else 0.0,
    }
