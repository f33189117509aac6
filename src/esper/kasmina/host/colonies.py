"""Places that lie at several modules at once: colonies, found by the model's repeated structure.

``"blocks.*.mlp"`` is the colony of ``blocks.0.mlp``, ``blocks.1.mlp`` and so on: the classes of channels within each of
them, what runs beside each of them, and behind each of them. ``"*"`` is the colony of all channels of the model that
can become more, the stream that runs from block to block among them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.blueprints.blueprint import Ports
from esper.contracts.errors import ConfigError
from esper.contracts.reports import WHOLE, BlockCopy, Piece, PieceRole
from esper.kasmina.channels.library_layers import is_norm, is_transposed_linear
from esper.kasmina.geometry import Geometry
from esper.kasmina.host.channel_classes import CONVOLUTIONS, ChannelClass
from esper.kasmina.host.refusals import refuse_unswappable
from esper.kasmina.places.site import Site


def starred(name: str) -> str:
    """A module's name with ``*`` for every number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def colonies(
    model: nn.Module,
    classes: Sequence[ChannelClass],
    found: Iterable[Site],
    allowed: Iterable[str],
    copies: Mapping[str, BlockCopy],
) -> list[Site]:
    """The colonies of a model.

    Args:
        model: the host.
        classes: of its channels; those with a fault are left out.
        found: where its places lie.
        allowed: names of the modules that may be widened.
        copies: what copies of its blocks are made of, by the blocks' names.
    """
    modules = dict(model.named_modules())
    may_widen = set(allowed)
    fit = [one for one in classes if one.fault is None and may_widen.issuperset(one.modules)]
    fit = [one for one in fit if all(_is_swappable(modules[name]) for name in one.modules)]
    named: dict[str, list[ChannelClass]] = {}
    for one in fit:
        named.setdefault(starred(within(one.modules)), []).append(one)
    groups = {name: group for name, group in named.items() if "*" in name and len(group) > 1}
    beside = _beside(found, copies)
    if fit and not any(len(group) == len(fit) for group in groups.values()):
        groups[WHOLE] = fit
    return [
        _site(
            name,
            [*_pieces(modules, groups.get(name, [])), *(piece for piece, _ in beside.get(name, []))],
            {piece.module: geometry for piece, geometry in beside.get(name, [])},
        )
        for name in dict.fromkeys((*groups, *beside))
    ]


def _site(name: str, pieces: Sequence[Piece], geometries: dict[str, Geometry]) -> Site:
    covered = tuple(dict.fromkeys(piece.module for piece in pieces if piece.role != "table"))
    writes = sum(piece.outputs for piece in pieces if piece.role not in ("table", "copy"))
    return Site(
        name,
        "colony",
        Ports(pieces[0].inputs, writes),
        Geometry(),
        covered,
        pieces=tuple(pieces),
        geometries=geometries,
    )


def within(names: Sequence[str]) -> str:
    """The module that holds all of them."""
    paths = [name.split(".") for name in names]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    shortest = min(map(len, paths))
    return ".".join(common[: shortest - 1] if len(common) == shortest else common)


def _beside(found: Iterable[Site], copies: Mapping[str, BlockCopy]) -> dict[str, list[tuple[Piece, Geometry]]]:
    """What runs beside and behind blocks of one kind, by the name of their colony."""
    steps: dict[str, list[tuple[Piece, Geometry]]] = {}
    behind: dict[str, list[tuple[Piece, Geometry]]] = {}
    for site in found:
        is_plain = site.geometry.adapter == "same" and site.form == ("tensor",) and site.field is None
        if site.kind == "block" and is_plain and site.ports.inputs:
            ports, name = site.ports, starred(site.layer_id)
            piece = Piece(site.layer_id, "beside", ports.inputs, ports.outputs, ports.layout, ports.positions)
            steps.setdefault(name, []).append((piece, site.geometry))
            if site.layer_id in copies:
                copy = replace(piece, role="copy", axis=site.geometry.output_axis, copy=copies[site.layer_id])
                behind.setdefault(name, []).append((copy, site.geometry))
    return {
        name: group + (behind[name] if len(behind.get(name, ())) > 1 else [])
        for name, group in steps.items()
        if len(group) > 1
    }


def _pieces(modules: dict[str, nn.Module], classes: Sequence[ChannelClass]) -> list[Piece]:
    """How every layer of the classes is widened, in the order of the model."""
    pieces: dict[str, Piece] = {}
    for index, one in enumerate(classes):
        for name in one.modules:
            piece = pieces.get(name) or _piece(name, modules[name])
            if name in one.readers:
                piece = replace(piece, reads=one.width, source=index, between=one.between.get(name, 1))
            if name in one.writers or name in one.norms:
                piece = replace(piece, writes=one.width, target=index)
            if name in one.norms:
                piece = replace(piece, source=index)
            pieces[name] = piece
        for name, (axis, is_sum) in one.tables.items():
            pieces[name] = Piece(
                name, "table", 0, one.width, writes=one.width, target=index, axis=axis, has_scale=not is_sum
            )
    order = {name: number for number, name in enumerate(modules)}
    return sorted(pieces.values(), key=lambda piece: order.get(piece.module, math.inf))


def _piece(name: str, module: nn.Module) -> Piece:
    found: dict[str, Any] = {"has_bias": getattr(module, "bias", None) is not None}
    match module:
        case nn.Linear():
            role, inputs, outputs = "linear", module.in_features, module.out_features
        case _ if is_transposed_linear(module):
            weight: Any = module.weight
            role, (inputs, outputs) = "linear", weight.shape
        case nn.Embedding():
            role, inputs, outputs = "embedding", module.num_embeddings, module.embedding_dim
        case _ if isinstance(module, CONVOLUTIONS):
            role = "conv" if module.groups == 1 else "depthwise"
            inputs, outputs = module.in_channels, module.out_channels
            found["kernel"] = module.kernel_size
        case _:
            role, inputs = _norm(module)
            outputs = inputs
            found["has_scale"] = getattr(module, "weight", None) is not None
            found["groups"] = getattr(module, "num_groups", 1)
    kind: PieceRole = role  # type: ignore[assignment]
    return Piece(name, kind, inputs, outputs, **found)


def _norm(module: Any) -> tuple[str, int]:
    if isinstance(module, _BatchNorm):
        return "batch_norm", module.num_features
    if isinstance(module, nn.GroupNorm):
        return "group_norm", module.num_channels
    if is_norm(module):
        return "rms_norm" if getattr(module, "bias", None) is None else "layer_norm", len(module.weight)
    return "layer_norm" if isinstance(module, nn.LayerNorm) else "rms_norm", module.normalized_shape[0]


def _is_swappable(module: nn.Module) -> bool:
    try:
        refuse_unswappable("a layer", module)
    except ConfigError:
        return False
    return True
