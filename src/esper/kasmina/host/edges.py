"""What torch's layers tell about their inputs and outputs: widths, channel axis, layout."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.nn.utils import parametrize

from esper.contracts.reports import Layout


@dataclass(frozen=True)
class Edge:
    """What a layer with parameters reads and writes.

    Args:
        inputs: features that it reads; 0 if it reads indices.
        outputs: channels that it writes.
        axis: their axis, 1 or -1.
        layout: what lies around them, as far as the layer alone tells.
        is_batch_first: whether the batch comes before the tokens.
        is_norm: whether it only normalises what others wrote.
        positions: axes of positions that it works along; 0 if any number will do.
    """

    inputs: int
    outputs: int
    axis: int = -1
    layout: Layout = "features"
    is_batch_first: bool = True
    is_norm: bool = False
    positions: int = 0


_RESAMPLING = (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.Upsample)
_CONV_LAYOUTS: dict[int, Layout] = {1: "signal", 2: "image"}


def edge_of(layer: nn.Module) -> Edge | None:
    """The edge of a layer that Esper knows; None for others."""
    match layer:
        case nn.Linear():
            return Edge(layer.in_features, layer.out_features)
        case _ConvNd():
            positions = len(layer.kernel_size)
            layout = _CONV_LAYOUTS.get(positions, "features")
            return Edge(layer.in_channels, layer.out_channels, axis=1, layout=layout, positions=positions)
        case nn.Embedding():
            return Edge(0, layer.embedding_dim, layout="tokens")
        case nn.EmbeddingBag():
            return Edge(0, layer.embedding_dim)
        case nn.MultiheadAttention():
            width = layer.embed_dim
            return Edge(width, width, layout="tokens", is_batch_first=layer.batch_first)
        case nn.RNNBase():
            width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
            return Edge(layer.input_size, width, layout="tokens", is_batch_first=layer.batch_first)
        case _BatchNorm() | _InstanceNorm():
            return Edge(layer.num_features, layer.num_features, axis=1, is_norm=True)
        case nn.GroupNorm():
            return Edge(layer.num_channels, layer.num_channels, axis=1, is_norm=True)
        case nn.LayerNorm() | nn.RMSNorm() if len(layer.normalized_shape) == 1:
            return Edge(layer.normalized_shape[0], layer.normalized_shape[0], is_norm=True)
    if is_adapted(type(layer)) and isinstance(inner := getattr(layer, "base_layer", None), nn.Module):
        return edge_of(inner)
    return None


def is_opaque(module: nn.Module) -> bool:
    """Whether a module must be hosted as a whole: it uses what it holds without calling it, or takes it apart."""
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase) or is_adapted(type(module))


def is_adapted(kind: type[nn.Module]) -> bool:
    """Whether it is the class of a layer with adapters of ``peft``: merging throws away what hangs on its parts."""
    return any(base.__name__ == "BaseTunerLayer" for base in kind.__mro__)


def is_around_adapters(kind: type[nn.Module]) -> bool:
    """Whether it is a class of ``peft`` around a model with adapters: merging them gives the model alone."""
    return any(base.__name__ in ("PeftModel", "BaseTuner") for base in kind.__mro__)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers with parameters of their own, in the order in which they were registered; opaque ones whole. What
    computes a layer's parameters is a part of it."""
    if isinstance(module, parametrize.ParametrizationList):
        return
    has_own = parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None
    if is_opaque(module) or has_own:
        yield module
    if not is_opaque(module):
        for child in module.children():
            yield from layers_of(child)


def first_and_last(*modules: nn.Module) -> tuple[Edge, Edge] | None:
    """Edges of the first and of the last layer that is more than a norm; None if one of them is unknown."""
    layers = [layer for module in modules for layer in layers_of(module)]
    edges = [edge_of(layer) for layer in layers]
    real = [edge for edge in edges if edge is None or not edge.is_norm] or edges
    if not real or real[0] is None or real[-1] is None:
        return None
    return real[0], real[-1]


def known_ends(*modules: nn.Module) -> list[Edge]:
    """Edges of the first and of the last layer that is known and more than a norm, whatever lies around them; empty if
    there is none."""
    edges = [edge_of(layer) for module in modules for layer in layers_of(module)]
    known = [edge for edge in edges if edge is not None and not edge.is_norm]
    return [known[0], known[-1]] if known else []


def is_linear_like(module: nn.Module, inputs: int, outputs: int) -> bool:
    """Whether a layer of an unknown class has a parameter that maps so many features to so many channels."""
    shapes = [list(parameter.shape) for parameter in module.parameters(recurse=False)]
    for shape in shapes:
        if inputs in shape:
            shape.remove(inputs)
            if outputs in shape:
                return True
    return False


def outermost(*modules: nn.Module) -> tuple[Edge | None, Edge | None]:
    """Edges of the first and of the last layer, norms among them; None for one that is unknown."""
    layers = [layer for module in modules for layer in layers_of(module)]
    return (edge_of(layers[0]), edge_of(layers[-1])) if layers else (None, None)


def keeps_positions(layer: nn.Module) -> bool:
    """Whether a layer's output has the positions of its input, as far as its type tells."""
    if isinstance(layer, _ConvNd):
        if layer.transposed or any(stride != 1 for stride in layer.stride):
            return False
        if isinstance(layer.padding, str):
            return layer.padding == "same"
        sizes = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        return all(2 * padding == dilation * (kernel - 1) for kernel, dilation, padding in sizes)
    return not isinstance(layer, _RESAMPLING)
