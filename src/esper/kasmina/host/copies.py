"""A block of the host once more: the same code with other tensors, and nothing of Esper in it."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from esper.kasmina.grafts.colony import Again
from esper.kasmina.outputs import first_tensor_at

ESPER = "_esper"
"""Name of the child of a host module that holds all of Esper."""

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name)


def again(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Again:
    """A call of a module as it was made, but for the first tensor and those that the module holds."""

    def call(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        y: Tensor = called(replica(module, tensors), args, kwargs, x)
        return y

    return call


def called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> Any:
    """Call a module with another tensor in the place of the first one."""
    where = first_tensor_at(module, args, kwargs)
    if isinstance(where, str):
        return module(*args, **{**kwargs, where: x})
    assert where is not None
    return module(*args[:where], x, *args[where + 1 :], **kwargs)


def replica(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module of the same class, attributes and mode, with other tensors, without hooks and without Esper.

    Args:
        module: the module; nothing of it is changed, and its attributes are shared.
        tensors: parameters and buffers by name, those that are tied by their first one. The module's own stay where
            there is none.
    """
    return _replica(module, tensors, "", {})


def _replica(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, made: dict[int, Any]) -> nn.Module:
    if id(module) in made:
        shared: nn.Module = made[id(module)]
        return shared

    def taken(held: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        for name, tensor in held.items():
            if tensor is not None and prefix + name in tensors:
                made.setdefault(id(tensor), tensors[prefix + name].to(tensor.dtype))
        return {name: made.get(id(tensor), tensor) for name, tensor in held.items()}

    made[id(module)] = one = object.__new__(type(module))
    vars(one).update(vars(module), **{name: OrderedDict() for name in _HOOKS}, _compiled_call_impl=None)
    vars(one).update(_parameters=taken(module._parameters), _buffers=taken(module._buffers))
    vars(one)["_modules"] = {
        name: None if child is None else _replica(child, tensors, f"{prefix}{name}.", made)
        for name, child in module._modules.items()
        if name != ESPER
    }
    return one
