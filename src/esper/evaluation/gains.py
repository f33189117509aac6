"""By how much one network is better than another, on the same test samples."""

import hashlib
from typing import Any

from torch import Tensor

from esper.evaluation.row import PerSample
from esper.observability.pairing import Z_95
from esper.runtime.judging.worth import paired_gain
from esper.tasks.task import Samples


def gains(grown: PerSample, control: PerSample, groups: Tensor | None) -> dict[str, Any]:
    """What growth gained over a control, with 95 % intervals over the test samples.

    They tell how sure the difference of these two networks is, not what other seeds would give.

    Args:
        grown: the grown network on the test samples.
        control: the other one on the same samples.
        groups: int64 ``[n]``; samples of one number belong together and count as one.

    Returns:
        ``loss`` (nats) and ``metric`` (share of right predictions), each ``mean``, ``low`` and ``high``, positive where
        the grown network is better and None where a value is not finite; ``units``: the samples, or groups of them.
    """
    units = len(grown.losses) if groups is None else len(groups.unique())
    return {
        "loss": _interval(grown.losses, control.losses, groups),
        "metric": _interval(-grown.correct, -control.correct, groups),
        "units": units,
    }


def fingerprint(samples: Samples) -> dict[str, Any]:
    """Tells whether two networks were tested on the same samples: their number, and a digest of their bytes."""
    digest = hashlib.sha256()
    for tensor in samples:
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return {"samples": len(samples.y), "digest": digest.hexdigest()[:16]}


def _interval(values: Tensor, reference: Tensor, groups: Tensor | None) -> dict[str, float | None]:
    mean, error = paired_gain(values.double(), reference.double(), groups)
    if mean is None or error is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": mean, "low": mean - Z_95 * error, "high": mean + Z_95 * error}
