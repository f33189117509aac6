"""Puts what Esper keeps below a host module there, finds it, and takes it away."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from esper.contracts.errors import ConfigError
from esper.kasmina.host.copies import ESPER
from esper.kasmina.host.layer import Anchor, KasminaLayer, kasmina_class
from esper.kasmina.places.place import Place


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        ConfigError: telling what it is.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be an nn.Module that esper.wrap has given seeds, not {model!r:.80}.")


def places(model: nn.Module) -> Iterator[Place]:
    """All places of a wrapped model, each once; those of a module after those of its children.

    Raises:
        ConfigError: if it is no module.
    """
    check_module(model)
    for module in model.modules():
        if isinstance(module, Place):
            yield module


def is_espers(name: str) -> bool:
    """Whether a dotted name of a parameter, buffer or module lies below a host's ``_esper``."""
    return f".{ESPER}." in f".{name}."


def anchor_of(module: nn.Module) -> Anchor:
    """What Esper keeps below a module, whose class is swapped if it is bare."""
    if not isinstance(module, KasminaLayer):
        module.__class__ = _over(module, kasmina_class(parametrize.type_before_parametrizations(module)))
        module.add_module(ESPER, Anchor())
    anchor = module._modules[ESPER]
    assert isinstance(anchor, Anchor)
    return anchor


def to_bare_class(module: KasminaLayer) -> None:
    """Take Esper's part of one module away, in place."""
    del module._modules[ESPER]
    module.__class__ = _over(module, module.esper_base)


def _over(module: nn.Module, base: type) -> Any:
    """The class of a module on another base, below what ``torch.nn.utils.parametrize`` has put on top."""
    if not parametrize.is_parametrized(module):
        return base
    kind = type(module)
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (base,), own)
