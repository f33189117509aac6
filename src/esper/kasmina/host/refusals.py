"""Hosts that cannot carry seeds, and what to do about it."""

import inspect
from types import CodeType

import torch
from torch import nn

from esper.contracts.errors import ConfigError
from esper.kasmina.host.layer import KasminaLayer, kasmina_class

_COMPILED_OR_DISTRIBUTED = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def refuse_unfit(model: nn.Module) -> None:
    """Refuse a model that is wrapped already, scripted, compiled, distributed, lazy, or has nothing to train.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"esper.wrap takes an nn.Module, not a {type(model).__name__}.")
    for path, module in model.named_modules():
        name = repr(path) if path else "The model"
        if isinstance(module, KasminaLayer):
            raise ConfigError(f"{name} already carries seeds. Call esper.unwrap(model) first.")
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(f"{name} is scripted. Wrap the model before torch.jit.script.")
        bases = [base.__name__ for base in type(module).__mro__ if base.__name__ in _COMPILED_OR_DISTRIBUTED]
        if bases or module._compiled_call_impl is not None:
            kind = bases[0] if bases else "compiled module"
            is_compiled = kind in ("OptimizedModule", "compiled module")
            then = "then compile it" if is_compiled else "and train it in one process: ranks are not supported yet"
            raise ConfigError(f"{name} is already a {kind}. Wrap the bare model first, {then}.")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ConfigError(f"{name} is lazy. Run the model once on an example batch, then wrap it.")
    if next(model.parameters(), None) is None:
        raise ConfigError("The model has no parameters, so there is nothing to train.")


def refuse_unswappable(name: str, module: nn.Module) -> None:
    """Refuse a module in which the swapped class would never run, or whose code would run Esper's own child.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    kind = type(module)
    if "forward" in vars(module):
        raise ConfigError(
            f"{name} ({kind.__name__}) has a forward of its own on the instance, which a class swap cannot see. Put it "
            "into a class."
        )
    try:
        kasmina_class(kind)
    except TypeError as error:
        raise ConfigError(
            f"{name} ({kind.__name__}) cannot be subclassed ({error}), so it cannot carry seeds. Leave it out of "
            "layers, or let its class take subclasses."
        ) from error
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    if code is not None and _mentions(code, "_modules"):
        raise ConfigError(
            f"{name}: {kind.__name__}.forward walks self._modules and would run Esper's own child. Iterate over "
            "self.children() instead."
        )


def _mentions(code: CodeType, attribute: str) -> bool:
    """Whether a function, or one defined in it, reads an attribute of this name."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return attribute in code.co_names or any(_mentions(one, attribute) for one in inner)
