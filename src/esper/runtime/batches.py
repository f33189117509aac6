"""What a batch must be to be remembered in a checkpoint."""

from typing import Any

from torch.utils._pytree import tree_structure

from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError, ConfigError


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
