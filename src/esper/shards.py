"""Tensors of which each rank holds a part, as ``torch.distributed.fsdp.fully_shard`` deals them out.

In a model such a tensor is a ``DTensor`` over all ranks. In a nested state it is a :class:`Shard`, which knows nothing
of processes.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shard(NamedTuple):
    """A rank's part of a tensor.

    Args:
        local: the part. Ranks have theirs in their order, all as large as the first one's as far as there is enough.
        dim: along which the tensor is cut; None where every rank has all of it.
        shape: of the whole.
    """

    local: Tensor
    dim: int | None
    shape: torch.Size


def is_sharded(value: Any) -> bool:
    """Whether it is a tensor that ranks hold together."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # there is none before somebody has imported that
    return module is not None and isinstance(value, module.DTensor)


def is_sharded_module(module: Any) -> bool:
    """Whether ``fully_shard`` was called on a module itself."""
    return hasattr(module, "set_reshard_after_forward")  # importing FSDPModule takes a second


def own(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; of any other tensor all."""
    part: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. All ranks must ask together for one that they share."""
    full: Tensor = tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def shard_of(tensor: Any) -> Shard:
    """The part of a ``DTensor`` over one row of ranks, in the same memory."""
    (placement,) = tensor.placements
    return Shard(own(tensor), placement.dim if placement.is_shard() else None, tensor.shape)


def live(tree: Any, mesh: Any) -> Any:
    """A nested state with a ``DTensor`` over a mesh in place of every :class:`Shard`; without one with the whole tensor
    that it is then."""
    if isinstance(tree, dict):
        return {key: live(value, mesh) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(live(value, mesh) for value in tree)
    if not isinstance(tree, Shard):
        return tree
    if mesh is None:
        return tree.local
    from torch.distributed import tensor  # which takes long to load

    placement = tensor.Replicate() if tree.dim is None else tensor.Shard(tree.dim)
    stride = torch.empty(tree.shape, device="meta").stride()
    return tensor.DTensor.from_local(tree.local, mesh, [placement], shape=tree.shape, stride=stride)


def dealt(trees: Sequence[Any], rank: int, size: int) -> Any:
    """A nested state for one of other ranks than have written it: their parts, put together and cut anew.

    Args:
        trees: of all ranks that have written it. What is no part comes from the first.
        rank: the one that goes on.
        size: how many go on; a single one gets whole tensors.
    """
    first = trees[0]
    if isinstance(first, dict):
        return {key: dealt([tree[key] for tree in trees], rank, size) for key in first}
    if type(first) in (list, tuple):
        return type(first)(dealt(parts, rank, size) for parts in zip(*trees, strict=True))
    if not isinstance(first, Shard) or first.dim is None:
        return first
    return cut(torch.cat([tree.local for tree in trees], first.dim), first.dim, rank, size)


def cut(tensor: Tensor, dim: int, rank: int, size: int) -> Shard:
    """The part that a rank has of a tensor that ``size`` ranks share."""
    length = tensor.shape[dim]
    begin, end = (min(index * -(-length // size), length) for index in (rank, rank + 1))
    return Shard(tensor.narrow(dim, begin, end - begin).clone(), dim, tensor.shape)
