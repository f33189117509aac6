"""The grown model as standard torch modules, with nothing of Esper in it."""

import copy
import dataclasses
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from esper.contracts.errors import ConfigError
from esper.kasmina.host.layer import ESPER, KasminaLayer
from esper.kasmina.host.wrapping import places
from esper.kasmina.places.place import Place

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


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
    if isinstance(module, nn.TransformerEncoder) and any(place.is_growing for place in places(module.layers)):
        module.use_nested_tensor = False  # which fossils cannot read
    steps = {name: child for name, child in module._modules.items() if child is not None and name != ESPER}
    spans = [place for step in steps.values() for place in _places(step, "span")]
    starts = {name: list(step._esper.feeds) for name, step in steps.items() if isinstance(step, KasminaLayer)}
    ends = {name: list(_places(step, "span")) for name, step in steps.items()}
    own = [place for place in _places(module) if place.kind != "span"]
    for name, child in steps.items():
        module._modules[name] = _plain(child, done)
    if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, fx.GraphModule) for m in module.modules()):
        module.activation_relu_or_gelu = 0  # off its fast path, which reads weights and would bypass what grew beneath
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
    """The host and the fossils of its own places."""
    root, graph = nn.Module(), fx.Graph()
    root.add_module("host", host)
    args, kwargs = _placeholders(graph, host)
    output = graph.call_module("host", args, kwargs)
    for place in own:
        output = _add_fossils(root, graph, place, [*args, *kwargs.values()][0], output)
    module = _graph_module(root, graph, output, host, "Grown")
    # A parent may read them: ``self.linear.weight``, ``layer.self_attn.batch_first``. As plain entries they are neither
    # parameters nor children a second time.
    for name, value in {**vars(host), **host._parameters, **host._buffers, **host._modules}.items():
        if name not in _OF_EVERY_MODULE and not hasattr(module, name):
            vars(module)[name] = value
    return module


def _placeholders(graph: fx.Graph, host: nn.Module) -> tuple[tuple[fx.Node, ...], dict[str, Any]]:
    """Arguments like those of the host's forward; the first one is what grafts read."""
    args: list[fx.Node] = []
    kwargs: dict[str, Any] = {}
    for parameter in inspect.signature(host.forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            kind = type(host).__name__
            raise ConfigError(
                f"{kind}.forward takes *{parameter.name}, so no graph with fossils beside it can be made. Give its "
                "forward named arguments."
            )
        default = () if parameter.default is parameter.empty else (parameter.default,)
        node = graph.placeholder(parameter.name, None, *default)
        if parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = node
        else:
            args.append(node)
    return tuple(args), kwargs


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


def _graph_module(root: nn.Module, graph: fx.Graph, output: fx.Node, host: nn.Module, name: str) -> fx.GraphModule:
    graph.output(output)
    module = fx.GraphModule(root, graph, name)
    module.training = host.training
    return module


def _add_fossils(root: nn.Module, graph: fx.Graph, place: Place, x: fx.Node, output: fx.Node) -> fx.Node:
    """The host's output with all fossils of a place, in the form that the host gives it."""
    geometry, (form, *where) = place.site.geometry, place.site.form
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxy: Any = fx.Proxy(output, tracer)
    y: Any = geometry.channels_last(_written(proxy, form, where))
    read: Any = geometry.read(fx.Proxy(x, tracer), y) if place.ports.inputs else None  # type: ignore[arg-type]
    for index, group in enumerate(place.arena.fossils):
        for graft, params in zip(group, place.arena.fossil_bytes(index), strict=True):
            name = f"graft_{graft.lifecycle}"
            root.add_module(name, graft.blueprint.to_module(graft.ports, graft.unflatten(params)).train(place.training))
            start, end = graft.channels
            source = read if graft.blueprint.reads == "input" else y.narrow(-1, start, end - start)
            delta: Any = fx.Proxy(graph.call_module(name, (source.node,)), tracer)
            if graft.blueprint.reads == "input":
                delta = geometry.settle(delta, y)
            before, after = start, place.ports.outputs - end
            if before or after:
                delta = F.pad(delta, (before, after))
            y = y + delta
    y = geometry.restore(y)
    return _replaced(proxy, form, where, y.contiguous() if geometry.output_axis == 1 else y)


def _written(output: Any, form: str, where: list[Any]) -> Any:
    if form == "tensor":
        return output
    return getattr(output, where[0]) if form == "dataclass" else output[where[0]]


def _replaced(output: Any, form: str, where: list[Any], y: Any) -> fx.Node:
    """As in :func:`esper.kasmina.outputs.with_tensor`, in a graph; a named tuple becomes a plain one."""
    graph: fx.Graph = output.node.graph
    if form == "items":
        index, length = where
        items = tuple(y.node if one == index else output[one].node for one in range(length))
        return graph.call_function(tuple, (items,))
    if form == "mapping":
        return graph.call_function(operator.or_, (output.node, {where[0]: y.node}))
    if form == "dataclass":
        return graph.call_function(dataclasses.replace, (output.node,), {where[0]: y.node})
    node: fx.Node = y.node
    return node
