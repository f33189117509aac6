"""Parameter groups as most training recipes want them."""

from typing import Any

from torch import nn

from esper.contracts.errors import ConfigError
from esper.kasmina.host.anchoring import is_espers
from esper.kasmina.host.edges import edge_of


def param_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weight matrices decay; biases, norms, embeddings and grafts do not.

    Grafts have a decay of their own, ``GrowthConfig.graft_weight_decay``; Esper steps them itself.

    Args:
        model: the host, wrapped or bare.
        weight_decay: of the first group, at least 0.

    Raises:
        ConfigError: if ``weight_decay`` is negative, or no number.
    """
    if not isinstance(weight_decay, int | float) or not weight_decay >= 0:
        raise ConfigError(f"weight_decay must be at least 0, not {weight_decay!r}.")
    exempt = {
        id(parameter)
        for module in model.modules()
        if _is_norm_or_embedding(module)
        for parameter in module.parameters(recurse=False)
    }
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in exempt and not is_espers(name)
        decays[is_matrix].append(parameter)
    groups = [
        {"params": decays[True], "weight_decay": weight_decay},
        {"params": decays[False], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_norm_or_embedding(module: nn.Module) -> bool:
    edge = edge_of(module)
    return edge is not None and (edge.is_norm or not edge.inputs)
