"""What a run began with, where that was trained weights, and what its controls are then."""

from collections.abc import Mapping
from typing import Any

from esper.observability.cited import Name, Words, sentences, words
from esper.observability.shapes import is_text

UNSEEN = "If the weights were trained on another split of the data, they may have seen its held-out and test samples."
"""What must be said of every such run: nothing in it can tell."""


def trained_weights(told: Mapping[str, Any]) -> str | None:
    """The path of the weights that a run began with; None if they were random.

    Args:
        told: the run's result, or its options.
    """
    path = told.get("weights")
    return path if is_text(path) else None


def beginning(told: Mapping[str, Any]) -> Words:
    """What a run that began with trained weights must be read as; nothing for all others.

    Args:
        told: the run's result, or its options where it has none yet.
    """
    path, rows = trained_weights(told), told.get("rows", {})
    if path is None:
        return Words()
    said = [words("The run began with trained weights, from ", Name(path), ".")]
    if rows.get("host_on") is not None:
        said.append(words("The host trained on goes on from the same weights."))
    if rows.get("static") is not None:
        said.append(words("The static network is new: it got the FLOPs of this run, but none for what the weights "))
        said[-1] += words("had cost.")
    return sentences([*said, words(UNSEEN)])
