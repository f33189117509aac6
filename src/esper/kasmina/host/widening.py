"""Colonies that widen layers, as plain layers of the new widths.

A layer keeps its class, its name and its hooks; its weights get rows for the channels that it writes anew and columns
for those that it reads, the host's always first. A norm over all channels treats old and new ones apart, so that it
becomes a graph module with the host's norm and one for the channels of each fossil; but a group norm whose new groups
are as large as the host's only gets more groups.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from esper.blueprints.blueprint import Blueprint
from esper.blueprints.widen import Widen
from esper.kasmina.channels.library_layers import eps_of, is_transposed_linear
from esper.kasmina.grafts.colony import tensors_of
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.widened import new_groups
from esper.kasmina.host.layer import Anchor
from esper.kasmina.places.place import Place

HOST = "host"
"""Name of the child that is the host's own norm, where new channels have norms of their own."""


class Part(NamedTuple):
    """What a fossil has at one module.

    Args:
        graft: the fossil; as one of a single place where it lies beside the module.
        piece: how its colony meets the module; None if it is none.
        params: its parameters, by name; of a copy also its running statistics.
        statistics: of new channels behind a batch norm; None elsewhere.
    """

    graft: Graft
    piece: Any
    params: dict[str, Tensor]
    statistics: Any = None


def parts_of(place: Place) -> Iterator[Part]:
    """All that a place's fossils have, in the order in which they are computed."""
    statistics = dict(place.arena.statistics.items())
    for index, group in enumerate(place.arena.fossils):
        for graft, params_N in zip(group, place.arena.fossil_bytes(index), strict=True):
            sizes = [graft.blueprint.num_parameters(part) for part in graft.parts]
            pieces = graft.pieces or (None,)
            for number, (piece, flat) in enumerate(zip(pieces, params_N.split(sizes), strict=True)):
                params = tensors_of(graft, number, flat, place.arena.statistics)
                one = graft.alone(number) if isinstance(graft.blueprint, Blueprint) else graft
                yield Part(one, piece, params, statistics.get(f"{graft.lifecycle}_{number}"))


def parts_at(anchor: Anchor, kind: type) -> list[Part]:
    """What colonies' fossils of one kind have at one module, in the order in which they are computed."""
    return [
        part
        for place, limb in anchor.limbs
        for part in parts_of(place)
        if isinstance(part.graft.blueprint, kind) and (part.piece.module, part.piece.role) == (limb.module, limb.role)
    ]


def widen(model: nn.Module, anchors: Mapping[nn.Module, Anchor]) -> bool:
    """Make the layers of a model as wide as fossils have made them, in place.

    Args:
        model: the model, of its bare classes.
        anchors: what Esper has kept below its modules.

    Returns:
        Whether any has become wider.
    """
    is_wider = False
    for module, anchor in anchors.items():
        parts = parts_at(anchor, Widen)
        if parts:
            is_wider = True
            _widen_layer(model, module, parts)
        for place in anchor.founded():
            for part in parts_of(place):
                if part.piece.role == "table":
                    _pad(module, part)
    return is_wider


def host_part(module: nn.Module) -> nn.Module:
    """The host's own module of a step that became a graph module when it was widened; any other is its own."""
    own = module._modules.get(HOST)
    return own if isinstance(module, fx.GraphModule) and own is not None else module


@torch.no_grad()
def _widen_layer(model: nn.Module, module: nn.Module, parts: Sequence[Part]) -> None:
    role = parts[0].piece.role
    if role in ("layer_norm", "rms_norm") or (role == "group_norm" and not _has_equal_groups(module, parts)):
        apart = _apart(module, parts)
        for parent in [*model.modules()]:
            for name, child in parent._modules.items():
                if child is module:
                    parent._modules[name] = apart
    else:
        _IN_PLACE[role](module, parts)


def _matrix(module: Any, parts: Sequence[Part]) -> None:
    """Blocks: what every fossil reads of the host and of itself, and zeros where it would read another."""
    is_transposed = is_transposed_linear(module)
    host = module.weight.detach().t() if is_transposed else module.weight.detach()
    between = parts[0].piece.between
    columns = [part.params["old"].shape[1] if "old" in part.params else 0 for part in parts]

    def read(rows: int, blocks: Iterable[Tensor | None]) -> list[Tensor]:
        shapes = [(rows, width, *host.shape[2:]) for width in columns]
        pairs = zip(blocks, shapes, strict=True)
        return [host.new_zeros(shape) if block is None else block.to(host) for block, shape in pairs]

    lines = [_beside([host, *read(len(host), (part.params.get("old") for part in parts))], between)]
    for part in parts:
        if "new" in part.params:
            new = part.params["new"].to(host)
            both = (part.params.get("both") if other is part else None for other in parts)
            lines.append(_beside([new, *read(len(new), both)], between))
    weight = torch.cat(lines)
    _set(module, "weight", weight.t().contiguous() if is_transposed else weight)
    _append(module, "bias", parts)
    names = ("out_features", "in_features") if isinstance(module, nn.Linear) else ("out_channels", "in_channels")
    names = ("nf", "nx") if is_transposed else names
    for name, size in zip(names, weight.shape, strict=False):
        setattr(module, name, size)


def _beside(blocks: Sequence[Tensor], positions: int) -> Tensor:
    """Columns of the host, then of new channels; so at each position, where several are read."""
    if positions == 1:
        return torch.cat([*blocks], 1)
    return torch.cat([block.unflatten(1, (positions, -1)) for block in blocks], 2).flatten(1)


def _embedding(module: Any, parts: Sequence[Part]) -> None:
    new = [part.params["new"].to(module.weight) for part in parts]
    _set(module, "weight", torch.cat([module.weight, *new], 1))
    module.embedding_dim = module.weight.shape[1]


def _depthwise(module: Any, parts: Sequence[Part]) -> None:
    _append(module, "weight", parts)
    _append(module, "bias", parts)
    module.in_channels = module.out_channels = module.groups = len(module.weight)


def _batch_norm(module: Any, parts: Sequence[Part]) -> None:
    module.num_features += sum(part.statistics.num_features for part in parts)
    _append(module, "weight", parts)
    _append(module, "bias", parts)
    for name in ("running_mean", "running_var"):
        host = getattr(module, name)
        if host is not None:
            setattr(module, name, torch.cat([host, *(getattr(part.statistics, name).to(host) for part in parts)]))


def _group_norm(module: Any, parts: Sequence[Part]) -> None:
    for part in parts:
        new = _new_channels(part)
        module.num_groups += new_groups(part.piece.outputs, part.piece.groups, new)
        module.num_channels += new
    _append(module, "weight", parts)
    _append(module, "bias", parts)


_IN_PLACE: dict[str, Callable[[Any, Sequence[Part]], None]] = {
    "linear": _matrix,
    "conv": _matrix,
    "embedding": _embedding,
    "depthwise": _depthwise,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
}


def _has_equal_groups(module: Any, parts: Sequence[Part]) -> bool:
    """Whether all groups of new channels are as large as the host's."""
    size = module.num_channels // module.num_groups
    return all(_new_channels(part) % size == 0 for part in parts)


def _apart(module: Any, parts: Sequence[Part]) -> fx.GraphModule:
    """A norm that treats the host's channels and those of each fossil apart."""
    axis = 1 if isinstance(module, nn.GroupNorm) else -1
    root, graph = nn.Module(), fx.Graph()
    norms = {HOST: module} | {f"new_{number}": _norm_of(module, part) for number, part in enumerate(parts, start=1)}
    sizes = [parts[0].piece.outputs, *map(_new_channels, parts)]
    split = graph.call_method("split", (graph.placeholder("input"), sizes), {"dim": axis})
    outputs = []
    for index, (name, norm) in enumerate(norms.items()):
        root.add_module(name, norm)
        outputs.append(graph.call_module(name, (graph.call_function(operator.getitem, (split, index)),)))
    graph.output(graph.call_function(torch.cat, (outputs,), {"dim": axis}))
    apart = fx.GraphModule(root, graph, f"Wider{type(module).__name__}")
    apart.training = module.training
    return apart


def _norm_of(module: Any, part: Part) -> nn.Module:
    """A norm of the host's kind for a fossil's channels."""
    new, eps, is_affine = _new_channels(part), eps_of(module), module.weight is not None
    norm: Any
    if isinstance(module, nn.GroupNorm):
        norm = nn.GroupNorm(new_groups(module.num_channels, module.num_groups, new), new, eps, is_affine)
    elif part.piece.role == "layer_norm":
        norm = nn.LayerNorm(new, eps, is_affine, module.bias is not None)
    else:
        norm = nn.RMSNorm(new, eps, is_affine)
    for name, value in part.params.items():
        host = getattr(module, name)
        setattr(norm, name, nn.Parameter(value.to(host).detach().clone(), requires_grad=host.requires_grad))
    return norm.train(module.training)


def _new_channels(part: Part) -> int:
    assert isinstance(part.graft.blueprint, Widen)
    return part.graft.blueprint.channels(part.piece.writes)


def _append(module: Any, name: str, parts: Sequence[Part]) -> None:
    """Lengthen a weight of single channels by those of the fossils."""
    host = getattr(module, name)
    if host is not None:
        _set(module, name, torch.cat([host, *(part.params[name].to(host) for part in parts if name in part.params)]))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    requires_grad = getattr(module, name).requires_grad
    setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=requires_grad))


@torch.no_grad()
def _pad(root: nn.Module, part: Part) -> None:
    """Lengthen what the host's code itself adds to its channels, or multiplies them with, so that it does nothing to
    new ones."""
    path, _, name = part.piece.module.rpartition(".")
    holder: Any = root.get_submodule(path)
    host, axis = getattr(holder, name), part.piece.axis
    shape = list(host.shape)
    shape[axis] = _new_channels(part)
    padded = torch.cat([host, host.new_full(shape, 1.0 if part.piece.has_scale else 0.0)], axis)
    if not isinstance(host, nn.Parameter):
        setattr(holder, name, padded)
        return
    _set(holder, name, padded)
    if isinstance(holder, nn.Embedding):
        holder.embedding_dim = padded.shape[1]
