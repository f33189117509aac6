"""Hosts that cannot carry seeds, and what to do about it."""

import inspect
from types import CodeType

import torch
from torch import fx, nn

from esper.contracts.errors import ConfigError
from esper.kasmina.host.layer import KasminaLayer, kasmina_class

_COMPILED_OR_DISTRIBUTED = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def refuse_unfit(model: nn.Module) -> None:
    """Refuse a model that is wrapped already, scripted, compiled, distributed, lazy, or has nothing to train.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"esper.wrap takes the model to grow, an nn.Module, not a {type(model).__name__}.")
    for path, module in model.named_modules():
        name = repr(path) if path else "The model"
        if isinstance(module, KasminaLayer):
            raise ConfigError(f"{name} already carries seeds. Call esper.unwrap(model) first.")
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(f"{name} is scripted. Wrap the model before torch.jit.script.")
        bases = [base.__name__ for base in type(module).__mro__ if base.__name__ in _COMPILED_OR_DISTRIBUTED]
        if bases or module._compiled_call_impl is not None:
            kind = bases[0] if bases else "compiled module"
            then = {"DistributedDataParallel": "put it into DistributedDataParallel", "FSDPModule": "fully_shard it"}
            then |= {"FullyShardedDataParallel": "shard it with torch.distributed.fsdp.fully_shard"}
            raise ConfigError(
                f"{name} is already a {kind}. Wrap the bare model first, then {then.get(kind, 'compile it')}."
            )
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ConfigError(f"{name} is lazy. Run the model once on an example batch, then wrap it.")
    if next(model.parameters(), None) is None:
        raise ConfigError("The model has no parameters, so there is nothing to train.")


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model with parts in ``FullyShardedDataParallel``, which flattens parameters.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    for path, module in model.named_modules():
        if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
            raise ConfigError(
                f"{repr(path) if path else 'The model'} is in FullyShardedDataParallel, which Esper does not support. "
                "Shard the wrapped model with torch.distributed.fsdp.fully_shard."
            )


def refuse_unswappable(name: str, module: nn.Module) -> None:
    """Refuse a module in which the swapped class would never run, or whose code would run Esper's own child.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    kind = type(module)
    if isinstance(getattr(vars(module).get("forward"), "__self__", None), fx.GraphModule):
        raise ConfigError(f"{name} was exported and runs what a span has grown in it. Go on with the wrapped model.")
    if "forward" in vars(module):
        raise ConfigError(
            f"{name} ({kind.__name__}) has a forward of its own on the instance, which a class swap cannot see. Put it "
            "into a class; where a library set it (Accelerate's mixed precision), call esper.wrap before."
        )
    try:
        kasmina_class(kind)
    except TypeError as error:
        raise ConfigError(
            f"{name} ({kind.__name__}) cannot be subclassed ({error}), so it cannot carry seeds. Leave it out of "
            "layers, or let its class take subclasses."
        ) from error
    if _mentioned(kind, "_modules"):
        raise ConfigError(
            f"{name}: {kind.__name__}.forward walks self._modules and would run Esper's own child. Iterate over "
            "self.children() instead."
        )


def refuse_bypassed(model: nn.Module) -> None:
    """Refuse a wrapped model in which a module was given a forward since that goes past its seeds. One that only calls
    the module's own (mixed precision by Accelerate or the Trainer) does no harm.

    Raises:
        ConfigError: naming the module and the remedy.
    """
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(module, KasminaLayer) and forward is not None:
            inner = inspect.unwrap(forward)
            if getattr(inner, "__code__", None) is not KasminaLayer.forward.__code__:
                raise ConfigError(
                    f"{repr(name) if name else 'The model'} was given a forward on the instance after esper.wrap, "
                    "which goes past its seeds. Put it into the class, or del module.forward."
                )


def walks_children(module: nn.Module) -> bool:
    """Whether a module's code runs whatever its children are."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return True
    return any(_mentioned(type(module), name) for name in ("children", "named_children", "modules", "_modules"))


def _mentioned(kind: type[nn.Module], attribute: str) -> bool:
    """Whether the forward of a class reads an attribute of this name."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and _mentions(code, attribute)


def _mentions(code: CodeType, attribute: str) -> bool:
    """Whether a function, or one defined in it, reads an attribute of this name."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return attribute in code.co_names or any(_mentions(one, attribute) for one in inner)
