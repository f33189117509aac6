"""How alike the outputs of two subjects are, for the same inputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.evaluation.ab.subject import Outputs


@dataclass(frozen=True)
class Similarity:
    """Outputs of A beside those of B.

    Args:
        max_absolute: largest difference of two numbers.
        max_relative: that difference in units of the largest number of either in the same array.
        equal_predictions: share of positions at which the largest entry of the last axis is the same one; None where
            outputs are no floating-point arrays of two axes or more.
    """

    max_absolute: float
    max_relative: float
    equal_predictions: float | None


def similarity(a: Outputs | None, b: Outputs | None) -> Similarity | str:
    """Compare outputs; gives why that is not possible."""
    if a is None or b is None:
        return "there are no outputs to compare"
    if a.inputs != b.inputs:
        return "the inputs were not the same"
    shapes = [[array.shape for array in one.arrays] for one in (a, b)]
    if shapes[0] != shapes[1] or not shapes[0]:
        return f"the outputs have other shapes: {shapes[0]} and {shapes[1]}"
    pairs = [(one.astype(np.float64), other.astype(np.float64)) for one, other in zip(a.arrays, b.arrays, strict=True)]
    if not all(np.isfinite(array).all() for pair in pairs for array in pair):
        return "the outputs are not all finite"
    equal = [
        one.argmax(-1) == other.argmax(-1)
        for (one, other), array in zip(pairs, a.arrays, strict=True)
        if np.issubdtype(array.dtype, np.floating) and array.ndim > 1 and array.shape[-1] > 1
    ]
    return Similarity(
        max(_largest(one - other) for one, other in pairs),
        max(_largest(one - other) / (max(_largest(one), _largest(other)) or 1.0) for one, other in pairs),
        float(np.concatenate([one.ravel() for one in equal]).mean()) if equal else None,
    )


def worst(found: list[Similarity]) -> Similarity | None:
    """Over several pairs: the largest differences, and the mean share."""
    if not found:
        return None
    shares = [one.equal_predictions for one in found if one.equal_predictions is not None]
    return Similarity(
        max(one.max_absolute for one in found),
        max(one.max_relative for one in found),
        sum(shares) / len(shares) if shares else None,
    )


def _largest(array: NDArray[Any]) -> float:
    return float(np.abs(array).max(initial=0.0))
