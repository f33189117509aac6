"""Layers of other libraries that compute as one of torch's does, such as those of ``transformers``.

They are told by the name of their class and by the only parameters that they have.
"""

from typing import Any

from torch import nn

NORMS = ("RMSNorm", "LayerNorm")
"""Endings of the names of norms over the last axis."""

EPS = ("eps", "variance_epsilon")
"""What libraries call the number that a norm adds before it divides."""


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer with a weight ``[inputs, outputs]``, as ``Conv1D`` of ``transformers``, which is no
    convolution."""
    parameters = module._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(module).__name__ != "Conv1D" or parameters.keys() != {"weight", "bias"} or weight is None or bias is None:
        return False
    return weight.dim() == 2 and bias.shape == weight.shape[1:] and hasattr(module, "nf")


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm over the last axis with a weight, and perhaps a bias, for each channel; none of torch's."""
    parameters = module._parameters
    weight = parameters.get("weight")
    if type(module) in (nn.LayerNorm, nn.RMSNorm) or not type(module).__name__.endswith(NORMS):
        return False
    if weight is None or not parameters.keys() <= {"weight", "bias"} or any(module.children()):
        return False
    if not any(hasattr(module, name) for name in EPS):
        return False
    return all(one is not None and one.dim() == 1 and len(one) == len(weight) for one in parameters.values())


def eps_of(norm: nn.Module) -> Any:
    """What a norm adds before it divides; None of an ``nn.RMSNorm`` that leaves that to torch."""
    return next(getattr(norm, name) for name in EPS if hasattr(norm, name))
