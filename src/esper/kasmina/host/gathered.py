"""Copies of models that ``torch.distributed.fsdp.fully_shard`` has spread over ranks: whole, and without a trace of it.

``fully_shard`` gives a module another class, which refuses to be copied, hooks and attributes of its own.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import nn

from esper.shards import is_sharded, is_sharded_module, whole

_ATTRIBUTES = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""What it leaves in modules begins with these."""

_OF_TORCH = "torch.distributed"


class _Nobody:
    """In place of what it keeps of a module."""


def gathered(model: nn.Module, made: Mapping[int, Any]) -> nn.Module:
    """A deep copy with whole parameters, for which all ranks must ask together if any is sharded.

    Args:
        model: the model.
        made: what is copied already, by the ``id`` of what it is a copy of.
    """
    sharded = [module for module in model.modules() if is_sharded_module(module)]
    memo: dict[int, Any] = dict(made)
    for module in sharded:
        module.reshard()  # type: ignore[operator]
        memo[id(module._get_fsdp_state())] = _Nobody()  # type: ignore[operator]
    for parameter in model.parameters():
        if is_sharded(parameter):
            memo[id(parameter)] = nn.Parameter(whole(parameter).clone(), parameter.requires_grad)
    with _of_own_classes(sharded):
        found = copy.deepcopy(model, memo)
    for module in found.modules() if sharded else ():
        _clean(module)
    return found


@contextmanager
def _of_own_classes(modules: list[nn.Module]) -> Iterator[None]:
    """Modules with the classes that they had before they were sharded."""
    kinds = [type(module) for module in modules]
    try:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = next(base for base in kind.__mro__ if not base.__module__.startswith(_OF_TORCH))
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


def _clean(module: nn.Module) -> None:
    held = vars(module)
    for name in [name for name in held if name.startswith(_ATTRIBUTES)]:
        del held[name]
    hooks = chain.from_iterable(one.items() for name, one in held.items() if name.endswith("_hooks"))
    theirs = [key for key, hook in hooks if getattr(hook, "hook", hook).__module__.startswith((_OF_TORCH, "esper."))]
    for name in [name for name in held if "_hooks" in name and isinstance(held[name], dict)]:
        for key in theirs:
            held[name].pop(key, None)
