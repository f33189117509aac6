"""Two runs on the same test samples: by how much one is better, with the interval over samples."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.observability.record import SAMPLES, Record

Z_95 = 1.959963984540054
"""Standard errors on either side of a 95 % normal interval."""


@dataclass(frozen=True)
class Paired:
    """Mean paired difference and the ends of its 95 % interval; positive where the later run is better."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Unpaired:
    """Why there is no interval."""

    reason: str


def samples_of(record: Record) -> dict[str, Any] | Unpaired:
    """The per-sample test results of a run by name, as arrays ``[n]``; or why there are none."""
    path = Path(record.directory) / SAMPLES
    if not path.is_file():
        return Unpaired(f"{SAMPLES} is missing")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError):
        return Unpaired(f"{SAMPLES} is damaged")


def paired(first: Record, other: Record, column: str) -> Paired | Unpaired:
    """Compare the grown networks of two runs sample by sample.

    Args:
        first: the run to compare with.
        other: the run that is compared.
        column: ``"loss"``, of which less is better, or ``"correct"``.

    Returns:
        What ``other`` is better by, over units: samples, or groups of them that belong together, averaged first; or
        why that cannot be told.
    """
    if first.result is None or other.result is None:
        return Unpaired("one of the two is not finished")
    digests = [record.result.get("test_set", {}).get("digest") for record in (first, other) if record.result]
    if None in digests:
        return Unpaired("which test samples were used was not recorded")
    if digests[0] != digests[1]:
        return Unpaired("they were tested on different samples")
    loaded = [samples_of(record) for record in (first, other)]
    for one, record in zip(loaded, (first, other), strict=True):
        if isinstance(one, Unpaired):
            return Unpaired(f"{one.reason} in {record.directory.name}")
    one, two = (found for found in loaded if not isinstance(found, Unpaired))
    name = f"grown.{column}"
    if name not in one or name not in two or one[name].ndim != 1 or one[name].shape != two[name].shape:
        return Unpaired("the results of their samples do not fit together")
    import numpy as np

    with np.errstate(all="ignore"):  # what is not finite is told by the interval
        values = two[name].astype(np.float64) - one[name].astype(np.float64)
        return interval_of(-values if column == "loss" else values, one.get("groups"))


def interval_of(gain: Any, groups: Any) -> Paired | Unpaired:
    """Mean of ``gain`` ``[n]`` with its interval; samples of one group are averaged first."""
    import numpy as np

    if groups is not None:
        if groups.shape != gain.shape:
            return Unpaired("the results of their samples do not fit together")
        unit_of = np.unique(groups, return_inverse=True)[1]
        gain = np.bincount(unit_of, weights=gain) / np.bincount(unit_of)
    if gain.size < 2 or not np.isfinite(gain).all():
        return Unpaired("the results of their samples are not all finite")
    mean, error = float(gain.mean()), float(gain.std(ddof=1)) / math.sqrt(gain.size)
    return Paired(mean, mean - Z_95 * error, mean + Z_95 * error)
