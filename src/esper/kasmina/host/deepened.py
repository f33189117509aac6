"""Copies that run behind blocks, as plain modules: what an export holds below each block."""

import copy
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from esper.blueprints.deepen import Deepen
from esper.contracts.reports import Piece
from esper.kasmina.host.copies import replica
from esper.kasmina.host.graphs import graph_module, placeholders
from esper.kasmina.host.layer import Anchor
from esper.kasmina.host.widening import Part, parts_at


class Behind(NamedTuple):
    """A copy that runs behind a block.

    Args:
        module: the copy, of the block's class.
        piece: where it runs.
        argument: position or name of the block's argument in whose place it reads what the block gave.
    """

    module: nn.Module
    piece: Piece
    argument: int | str


def copies_behind(anchors: Mapping[nn.Module, Anchor]) -> list[tuple[nn.Module, Behind]]:
    """Blocks with the copies behind each, in the order in which they run.

    Args:
        anchors: what Esper has kept below modules that are of their bare classes now, and as wide as they were.
    """
    return [
        (block, Behind(_copied(block, part), part.piece, _argument(anchor)))
        for block, anchor in anchors.items()
        for part in parts_at(anchor, Deepen)
    ]


def hook_of(behind: Behind, is_wider: bool) -> fx.GraphModule:
    """What a block's forward hook does: it calls the copy with what the block gave, and all else that the block got.

    Args:
        behind: the copy; it becomes the hook's child ``copy``.
        is_wider: whether the block may write more channels than the copy knows, behind those of the host.
    """
    root, graph = nn.Module(), fx.Graph()
    root.add_module("copy", behind.module)
    _, args, kwargs, output = placeholders(graph, "module", "args", "kwargs", "output")
    axis, width = behind.piece.axis, behind.piece.outputs
    y = output.narrow(axis, 0, width) if is_wider else output
    if isinstance(behind.argument, str):
        kwargs = kwargs | {behind.argument: y}
    else:
        args = operator.add(args[: behind.argument], (y,)) + args[behind.argument + 1 :]
    call: Any = torch.func.functional_call  # takes any number of arguments, which a call in a graph cannot
    node = graph.call_function(call, (graph.get_attr("copy"), {}, args.node, kwargs.node))
    grown: Any = fx.Proxy(node, output.tracer)
    if is_wider:
        grown = torch.cat([grown, output.narrow(axis, width, output.shape[axis] - width)], axis)
    return graph_module(root, graph, grown, behind.module.training)


def _copied(block: nn.Module, part: Part) -> nn.Module:
    own = {name: nn.Parameter(part.params[name].detach().to(one.dtype)) for name, one in block.named_parameters()}
    return copy.deepcopy(replica(block, part.params | own))


def _argument(anchor: Anchor) -> int | str:
    return next((place.site.argument for place in anchor if place.kind == "block"), 0)
