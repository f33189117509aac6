"""Remembered batches on their way into a checkpoint and back."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError, ConfigError


def pack(batches: list[Any]) -> dict[str, Any]:
    """Batches, and the device of each of their tensors: a checkpoint is read into host memory."""
    devices = [str(leaf.device) for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
    return {"batches": batches, "devices": devices}


def unpack(packed: dict[str, Any]) -> list[Any]:
    """Inverse of :func:`pack`."""
    devices = iter(packed["devices"])
    batches: list[Any] = tree_map(
        lambda leaf: leaf.to(next(devices)) if isinstance(leaf, Tensor) else leaf, packed["batches"]
    )
    return batches


def check_storable(batch: Any) -> None:
    """Refuse a batch that a checkpoint would not give back as it is.

    Raises:
        ConfigError: naming its type.
    """
    try:
        is_same = tree_structure(unflatten(*flatten(batch))) == tree_structure(batch)
    except CheckpointError:
        is_same = False
    if not is_same:
        raise ConfigError(
            f"A batch is a {type(batch).__name__} that no checkpoint can hold. Make batches of tensors, numbers and "
            "strings in plain lists, tuples and dicts, or leave out directory."
        )
