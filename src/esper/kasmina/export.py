"""The grown model as standard torch modules, with nothing of Esper in it."""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from esper.contracts.errors import ConfigError
from esper.kasmina.arena import Graft
from esper.kasmina.hosts import places
from esper.kasmina.layer import ESPER, KasminaLayer, Place


def export(model: nn.Module) -> nn.Module:
    """A copy of a wrapped model in which fossils are standard modules beside the host's.

    A module that carries fossils becomes a ``torch.fx.GraphModule`` of the host's module and one branch per fossil;
    where a span carries them, its sequential container does. Everything else keeps its class. Neither the copy nor what
    ``torch.export`` makes of it needs Esper.

    Args:
        model: the wrapped model, without live grafts.

    Returns:
        A new module with the same outputs, in the same mode, on the same device.

    Raises:
        ConfigError: if a graft is still live, or a control blueprint was grown.
    """
    live = [place.layer_id for place in places(model) if place.arena.live]
    if live:
        raise ConfigError(
            f"Grafts are still live at {', '.join(map(repr, live))}. Call session.finish(): it keeps or removes them."
        )
    return _plain(copy.deepcopy(model), {})


def _plain(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The module without Esper, children first; a shared module is done once."""
    if id(module) in done:
        return done[id(module)]
    key = id(module)
    steps = {name: child for name, child in module._modules.items() if child is not None and name != ESPER}
    spans = [place for step in steps.values() for place in _places(step, "span")]
    starts = {name: list(step._esper.feeds) for name, step in steps.items() if isinstance(step, KasminaLayer)}
    ends = {name: list(_places(step, "span")) for name, step in steps.items()}
    own = [place for place in _places(module) if place.kind != "span"]
    for name, child in steps.items():
        module._modules[name] = _plain(child, done)
    if isinstance(module, KasminaLayer):
        del module._modules[ESPER]
        module.__class__ = module.esper_base  # type: ignore[assignment]
    if spans:
        module = _sequential(module, starts, ends)
    if own:
        module = _beside(module, own)
    done[key] = module
    return module


def _places(module: nn.Module, kind: str | None = None) -> Iterator[Place]:
    """Places with fossils that write this module's output."""
    if isinstance(module, KasminaLayer):
        yield from (place for place in module._esper if place.is_growing and kind in (None, place.kind))


def _beside(host: nn.Module, own: list[Place]) -> fx.GraphModule:
    """``host(x)`` and the fossils of its own places."""
    root, graph = nn.Module(), fx.Graph()
    root.add_module("host", host)
    x = graph.placeholder("x")
    y = graph.call_module("host", (x,))
    for place in own:
        y = _add_fossils(root, graph, place, x, y)
    return _graph_module(root, graph, y, host, "Grown")


def _sequential(host: nn.Module, starts: dict[str, list[Place]], ends: dict[str, list[Place]]) -> fx.GraphModule:
    """The steps of a sequential container, and the fossils of spans between them."""
    root, graph = nn.Module(), fx.Graph()
    y = graph.placeholder("x")
    inputs: dict[str, fx.Node] = {}
    for name, step in host._modules.items():  # a step may come twice
        assert step is not None
        inputs |= {place.layer_id: y for place in starts.get(name, [])}
        root.add_module(f"step_{name}", step)
        y = graph.call_module(f"step_{name}", (y,))
        for place in ends[name]:
            if place.layer_id in inputs:  # else its last module runs outside the span here
                y = _add_fossils(root, graph, place, inputs.pop(place.layer_id), y)
    return _graph_module(root, graph, y, host, "GrownSequential")


def _graph_module(root: nn.Module, graph: fx.Graph, y: fx.Node, host: nn.Module, name: str) -> fx.GraphModule:
    graph.output(y)
    module = fx.GraphModule(root, graph, name)
    module.training = host.training
    return module


def _add_fossils(root: nn.Module, graph: fx.Graph, place: Place, x: fx.Node, y: fx.Node) -> fx.Node:
    for index, group in enumerate(place.arena.fossils):
        for graft, params in zip(group, place.arena.fossil_bytes(index), strict=True):
            name = f"graft_{graft.lifecycle}"
            root.add_module(name, graft.blueprint.to_module(graft.ports, graft.unflatten(params)).train(place.training))
            delta = graph.call_module(name, (_input_of(graph, graft, x, y),))
            before, after = graft.channels[0], place.ports.outputs - graft.channels[1]
            if before or after:
                delta = graph.call_function(F.pad, (delta, (before, after)))
            y = graph.call_function(torch.add, (y, delta))
    return y


def _input_of(graph: fx.Graph, graft: Graft, x: fx.Node, y: fx.Node) -> fx.Node:
    if graft.blueprint.reads == "input":
        return x
    start, end = graft.channels
    return graph.call_function(torch.narrow, (y, -1, start, end - start))
