"""What a batch holds, what kind of batch it is, copies of it, and whether a training step leaves it as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_structure

from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError, ConfigError

Sizes = tuple[tuple[int, ...], ...]
"""Shapes of all tensors of a batch."""


def check_copyable(batch: Any) -> None:
    """Refuse a batch that cannot be remembered by value.

    Raises:
        ConfigError: naming its type.
    """
    try:
        copy_of(batch)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise ConfigError(
            f"A batch is a {type(batch).__name__} that cannot be copied ({error}), so that no step could be taken once "
            "more on it. Make batches of tensors, arrays, numbers and strings in plain lists, tuples and dicts."
        ) from error


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


def kind_and_sizes(batch: Any) -> tuple[tuple[object, ...], Sizes]:
    """How a batch is built, with dtypes and numbers of axes; and the lengths of all axes of its tensors."""
    leaves, structure = _opened(batch)
    tensors = [part for leaf in leaves for part in _strided(leaf)]
    kinds = tuple((leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
    return (structure, kinds), tuple(tuple(tensor.shape) for tensor in tensors)


def num_bytes(batch: Any) -> int:
    """What the tensors and arrays of a batch take, wherever they are."""
    leaves, _ = _opened(batch)
    arrays = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray))
    tensors = (part for leaf in leaves for part in _strided(leaf))
    return arrays + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def copy_of(batch: Any) -> Any:
    """The same values on the same device, in memory of their own. What is one tensor in the batch is one in the copy.

    Modules, classes and functions in it stay what they are.
    """
    tensors: dict[int, Tensor] = {}

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if id(leaf) not in tensors:
                own = laid(leaf.detach().clone(), strides_of(leaf))
                tensors[id(leaf)] = own.requires_grad_(leaf.requires_grad)
            return tensors[id(leaf)]
        return leaf if isinstance(leaf, nn.Module | type) or callable(leaf) else copy.deepcopy(leaf)

    return tree_map(copied, batch)


def strides_of(leaf: Any) -> tuple[int, ...] | None:
    """Of a tensor that is not contiguous, those that a copy is to have: other ones would round differently.

    None where it is contiguous, or its gaps would take more memory than its values, or values share memory.
    """
    if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided or leaf.is_nested or leaf.is_contiguous():
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(leaf.shape, leaf.stride(), strict=True))
    is_dense = leaf.numel() <= span <= 2 * leaf.numel() and 0 not in leaf.stride()
    return tuple(leaf.stride()) if is_dense else None


def laid(leaf: Any, strides: tuple[int, ...] | None) -> Any:
    """A leaf of a batch; a tensor with these strides, unless they are None."""
    if strides is None or leaf.stride() == strides:
        return leaf
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype, device=leaf.device).copy_(leaf)


class Editing:
    """Whether training steps edit their batches. One that a loop of the caller's own has made leaves nothing of them.

    An edit is a change in place of a tensor, or of what the batch holds. Arrays that are no tensors are not seen into.

    Attributes:
        is_known: whether they do.
    """

    def __init__(self) -> None:
        self.is_known = False

    @contextmanager
    def noticed(self, batch: Any) -> Iterator[None]:
        """Around a step on a batch."""
        leaves, structure = _opened(batch)
        versions = list(map(_version, leaves))
        yield
        after, structure_after = _opened(batch)
        is_whole = structure == structure_after and len(leaves) == len(after)
        are_same = is_whole and all(one is other for one, other in zip(leaves, after, strict=True))
        self.is_known |= not are_same or versions != list(map(_version, leaves))


def _opened(batch: Any) -> tuple[list[Any], TreeSpec]:
    """All that a batch holds, of objects of other classes the values of their attributes; and how it is built."""
    leaves, structure = tree_flatten(batch)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return leaves, structure
    return [part for leaf in leaves for part in _parts(leaf, set())], structure


def _parts(leaf: Any, seen: set[int]) -> Iterator[Any]:
    is_plain = isinstance(leaf, Tensor | nn.Module | type | np.ndarray) or callable(leaf)
    if is_plain or not isinstance(getattr(leaf, "__dict__", None), dict):
        yield leaf
    elif id(leaf) not in seen:
        seen.add(id(leaf))
        yield type(leaf)
        for part in tree_flatten(vars(leaf))[0]:
            yield from _parts(part, seen)


def _strided(leaf: Any) -> list[Tensor]:
    """The dense tensors that a leaf is, or is made of."""
    if not isinstance(leaf, Tensor):
        return []
    if leaf.layout is torch.jagged:
        return [leaf.values()]
    if leaf.layout is torch.strided and not leaf.is_nested:
        return [leaf]
    return []


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0
