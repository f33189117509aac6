"""How a page's script reads the packed lattice, in Python."""

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.observability.lattice import FIRST, MISSING, SMALLEST_EXPONENT, STEPS, ZERO


def unpack(packed: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """What :func:`lattice` packed: values ``[measures, boundaries, seeds]`` and states ``[boundaries, seeds]``."""
    measures, seeds = len(packed["measures"]), sum(place["seeds"] for place in packed["places"])
    assert sum(pack["boundaries"] for pack in packed["packs"]) == len(packed["steps"])
    codes = [unpack_codes(pack["codes"], (measures, pack["boundaries"], seeds)) for pack in packed["packs"]]
    states = [unpack_states(pack["states"], pack["boundaries"]) for pack in packed["packs"]]
    return decode(np.concatenate(codes, axis=1)), np.concatenate(states)


def decode(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Inverse of :func:`encode`, to two significant digits; NaN where a value is missing."""
    exponent, digits = np.divmod(codes.astype(np.int64) - FIRST, STEPS)
    values = (digits + 10) / 10 * 10.0 ** np.where(codes == ZERO, 0, exponent + SMALLEST_EXPONENT)
    return np.where(codes == ZERO, 0.0, np.where(codes == MISSING, np.nan, values))


def unpack_codes(text: str, shape: tuple[int, int, int]) -> NDArray[np.uint16]:
    """Inverse of :func:`pack_codes`; ``shape`` is ``[measures, boundaries, seeds]``."""
    low, high = _unpack(text).astype(np.uint16).reshape(2, *shape)
    folded = low | (high << 8)
    change = (folded >> 1) ^ (0 - (folded & 1))
    return np.cumsum(change, axis=1, dtype=np.uint16)


def unpack_states(text: str, boundaries: int) -> NDArray[np.uint8]:
    """Inverse of :func:`pack_states`."""
    return np.cumsum(_unpack(text).reshape(boundaries, -1), axis=0, dtype=np.uint8)


def _unpack(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
