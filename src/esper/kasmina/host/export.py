"""The grown model as standard torch modules, with nothing of Esper in it.

A module that carries fossils stays what it is: its class, attributes and keys. It gets one child, ``grown``, and the
same object as a forward hook: a ``torch.fx.GraphModule`` that adds the fossils to the module's output. A graph module
carries its source, so that copying, pickling and loading need no Esper. It runs before the module's own forward hooks
and after its pre-hooks, where a wrapped module adds its grafts.
"""

import dataclasses
import functools
import inspect
import math
import operator
import threading
from collections import UserDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from esper.blueprints.blueprint import Blueprint
from esper.contracts.errors import ConfigError
from esper.kasmina.host.anchoring import places, to_bare_class
from esper.kasmina.host.caches import mixes_tokens
from esper.kasmina.host.comparing import check_same, run
from esper.kasmina.host.deepened import copies_behind, hook_of
from esper.kasmina.host.edges import is_adapted
from esper.kasmina.host.gathered import gathered
from esper.kasmina.host.graphs import graph_module, placeholders
from esper.kasmina.host.layer import MERGING, SAVING, Anchor, KasminaLayer
from esper.kasmina.host.measuring import container_of
from esper.kasmina.host.refusals import refuse_bypassed, walks_children
from esper.kasmina.host.widening import Part, host_part, parts_at, parts_of, widen
from esper.kasmina.places.place import Place
from esper.kasmina.places.site import Site

GROWN = "grown"
"""Name of the child that holds what a module has grown; further ones are ``grown_2`` and so on."""

WIDER = "has_wider_layers"
"""Attribute of an exported model whose layers have become wider."""

INPUTS = "span_inputs"
"""Attribute of the ends of a span whose container may not run it."""


class Grown(NamedTuple):
    """What is added to a module's output.

    Args:
        site: where it lies in the host's tensors.
        parts: of fossils, in the order in which they are computed.
        is_wider: whether other fossils may have made the module wider: it has the host's channels first then.
        is_training: its mode.
    """

    site: Site
    parts: Sequence[Part]
    is_wider: bool
    is_training: bool


def _grown(place: Place, is_wider: bool) -> Grown:
    return Grown(place.site, list(parts_of(place)), is_wider, place.training)


def new_inputs() -> "UserDict[Any, Any]":
    """Where the inputs of spans are kept, by thread. Not a dict, which torch.export takes for data and copies."""
    inputs: UserDict[Any, Any] = UserDict()
    vars(inputs)["thread"] = threading.get_ident
    return inputs


def export(model: nn.Module, example: Any = None, check: bool = True) -> nn.Module:
    """A copy of a wrapped model in which fossils are standard modules below those whose output they change.

    Every module keeps its class, attributes and the names of its weights. One that carries fossils has a child
    ``grown``, which is also its first forward hook. A sequential container in which a span has grown has a forward of
    its own with the span's fossils; where other code may call its steps one by one, hooks at the span's ends add them.
    Layers that a colony has widened are plain layers of the new widths; a norm over all channels then has the host's
    norm as a child ``host``, and one for each fossil's channels beside it. Weights that were tied part where both ends
    have grown.
    Neither the copy nor what ``torch.export`` makes of it needs Esper. It generates without a key-value cache where a
    graft that mixes tokens has grown.

    Args:
        model: the wrapped model, without live grafts.
        example: an input on which the copy is compared with the wrapped model, as :func:`esper.wrap` takes it. None is
            the one that ``wrap`` was given; without one nothing is compared.
        check: whether to compare, in eval mode.

    Returns:
        A new module with the same outputs, in the same mode, on the same device. Of a model that is sharded over ranks,
        all of them must ask for it.

    Raises:
        ConfigError: if a graft is still live, a control blueprint was grown, a module has got a forward of its own, or
            the copy computes something else.
    """
    live = [place.layer_id for place in places(model) if place.arena.live]
    if live:
        raise ConfigError(
            f"Grafts are still live at {', '.join(map(repr, live))}. Call session.finish(): it keeps or removes them."
        )
    if example is None and isinstance(model, KasminaLayer):
        example = model._esper.example
    grown = copied(model)
    refuse_bypassed(grown)
    for module in grown.modules():
        if isinstance(module, KasminaLayer):  # what a library has put around it for mixed precision
            vars(module).pop("forward", None)
            vars(module).pop("_original_forward", None)
    if not (check and example is not None and any(place.is_growing for place in places(grown))):
        return plain(grown)
    wanted = run(grown, example)
    exported = plain(grown)
    check_same(wanted, run(exported, example))
    return exported


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, with whole parameters. ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune`` keep a
    computed weight as a plain attribute, which deepcopy refuses; it is computed again in the next forward pass."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for held in vars(module).values()
        for value in (held if isinstance(held, list | tuple) else (held,))
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return gathered(model, computed)


def plain(model: nn.Module) -> nn.Module:
    """The model without Esper, in place."""
    anchors: dict[nn.Module, Anchor] = {}
    for module in list(model.modules()):
        if isinstance(module, KasminaLayer):
            anchors[module] = module._esper
            to_bare_class(module)
    grown = [(module, place) for module, anchor in anchors.items() for place in anchor if place.is_growing]
    settled = [place for anchor in anchors.values() for place in anchor.founded()]
    groups = (group for place in (*settled, *(place for _, place in grown)) for group in place.arena.fossils)
    if any(mixes_tokens(fossil) for group in groups for fossil in group):
        _decode_without_cache(model)
    beside = {module: parts for module, anchor in anchors.items() if (parts := parts_at(anchor, Blueprint))}
    behind = copies_behind(anchors)
    is_wider = widen(model, anchors)
    if is_wider:
        vars(model)[WIDER] = True
    for module, copied_block in reversed(behind):  # each in front of those before it
        hook = _hold(module, hook_of(copied_block, is_wider))
        module.register_forward_hook(hook, prepend=True, with_kwargs=True)
    for module, parts in beside.items():  # before those of its places: it runs behind them
        block = next(place for place in anchors[module] if place.layer_id == parts[0].piece.module)
        _hang(module, Grown(block.site, parts, is_wider, block.training))
    hosts = {*beside, *(module for module, _ in (*grown, *behind))}
    for module in anchors:
        if isinstance(module, nn.TransformerEncoder) and not hosts.isdisjoint(module.layers.modules()):
            module.use_nested_tensor = False  # which fossils cannot read
    spans: dict[nn.Module, list[Place]] = {}
    inputs = next((vars(module)[INPUTS] for module in model.modules() if INPUTS in vars(module)), new_inputs())
    for _, place in reversed(grown):  # each in front of those before it
        if place.kind == "span":
            container = container_of(model, place.site.modules)
            first, last = _ends(container, place)
            if place.site.is_walked or not _runs_whole(model, place) or _is_hooked(first, last):
                _hook_span(first, last, place, inputs, is_wider)
            else:
                spans.setdefault(container, []).insert(0, place)
    for container, inside in spans.items():
        vars(container)["forward"] = _sequential(container, inside, is_wider).forward
    for module, place in grown:
        if place.kind != "span":
            _hang(module, _grown(place, is_wider))
    for module in list(model.modules()):
        has_grown = is_wider or any(isinstance(one, fx.GraphModule) for one in module.modules())
        if hasattr(module, "save_pretrained") and has_grown:
            vars(module)["save_pretrained"] = _refusal(SAVING)
    return model


def _decode_without_cache(model: nn.Module) -> None:
    """Whatever ``generate`` goes by, its own settings or those of a model."""
    for module in model.modules():
        for settings in (getattr(module, "config", None), getattr(module, "generation_config", None)):
            if settings is not None and hasattr(settings, "use_cache"):
                settings.use_cache = False


def _refusal(message: str) -> Any:
    """A function without Esper that raises an ``AssertionError`` with this message, whatever its arguments are."""
    graph = fx.Graph()
    _, kwargs = placeholders(graph, "*args", "**kwargs")
    graph.call_function(torch._assert, (kwargs.get("").node, message))
    graph.output(None)
    return fx.GraphModule(nn.Module(), graph, "Refusal").forward


def _hold(module: nn.Module, grown: fx.GraphModule) -> fx.GraphModule:
    """Make what grew a child of the module; of its last one that does not walk its children, where it would run it."""
    holder = _holder(module)
    if holder is None:
        raise ConfigError(f"{type(module).__name__} walks its children, and none of them can hold what it has grown.")
    name, number = GROWN, 1
    while hasattr(holder, name):
        number += 1
        name = f"{GROWN}_{number}"
    holder.add_module(name, grown)
    return grown


def _holder(module: nn.Module) -> nn.Module | None:
    if not walks_children(module):
        return module
    found = (_holder(child) for child in reversed(list(module.children())))
    return next((holder for holder in found if holder is not None), None)


def _hang(host: nn.Module, grown: Grown) -> None:
    """Fossils as a child of a module, and as its first forward hook."""
    takes_names = not _is_called_by_position(host, grown.site)
    hook = _hold(host, _beside(host, grown, takes_names))
    host.register_forward_hook(hook, prepend=True, with_kwargs=takes_names)
    if is_adapted(type(host)):
        vars(host)["unload_and_optionally_merge_module"] = _refusal(MERGING)


def _is_called_by_position(host: nn.Module, site: Site) -> bool:
    """Whether a hook needs no names: those of torch's own layers, whose tools (``quantize_dynamic``) put a layer of
    another class in their place and hand its hooks positions alone."""
    return type(host).__module__.startswith("torch.nn.modules") and site.argument == 0


def _beside(host: nn.Module, grown: Grown, takes_names: bool) -> fx.GraphModule:
    """Fossils as a forward hook of a module."""
    root, graph = nn.Module(), fx.Graph()
    if takes_names:
        _, args, kwargs, output = placeholders(graph, "module", "args", "kwargs", "output")
        x = _argument(args, kwargs, host, grown.site) if grown.site.ports.inputs else None
    else:
        _, args, output = placeholders(graph, "module", "args", "output")
        x = args[0] if grown.site.ports.inputs else None
    return graph_module(root, graph, _add_fossils(root, grown, x, output), grown.is_training)


def _argument(args: Any, kwargs: Any, host: nn.Module, site: Site) -> Any:
    """What grafts read, however it is passed."""
    read = site.argument
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in inspect.signature(host.forward).parameters.values() if one.kind in kinds]
    if isinstance(read, str):
        if read not in names:
            return kwargs[read]
        read = names.index(read)
    return operator.add(args[read:], (kwargs.get(names[read]),))[0] if read < len(names) else args[read]


def _sequential(container: nn.Module, spans: list[Place], is_wider: bool) -> fx.GraphModule:
    """The forward of a sequential container, with the fossils of spans between its steps."""
    root, graph = nn.Module(), fx.Graph()
    (y,) = placeholders(graph, "input")
    inputs: dict[str, fx.Proxy] = {}
    for name, step in list(container._modules.items()):  # a step may come twice
        assert step is not None
        inputs |= {place.layer_id: y for place in spans if host_part(step) is _ends(container, place)[0]}
        root.add_module(name, step)
        y = fx.Proxy(graph.call_module(name, (y.node,)), y.tracer)
        for place in spans:
            if (
                host_part(step) is _ends(container, place)[1] and place.layer_id in inputs
            ):  # else it runs outside the span here
                called = f"{name}_{GROWN}_{len(root._modules)}"
                root.add_module(called, _hold(host_part(step), _span(_grown(place, is_wider))))
                y = fx.Proxy(graph.call_module(called, (y.node, inputs.pop(place.layer_id).node)), y.tracer)
    return graph_module(root, graph, y, True)


def _ends(container: nn.Module, span: Place) -> tuple[nn.Module, nn.Module]:
    """The host's first and last step of a span."""
    first, last = (container._modules[span.site.modules[end].rpartition(".")[2]] for end in (0, -1))
    assert first is not None
    assert last is not None
    return host_part(first), host_part(last)


def _runs_whole(model: nn.Module, span: Place) -> bool:
    """Whether nobody walks the span's container: it is the model itself, or lies in chains of torch alone. Other code
    may call it whole today and its steps one by one tomorrow."""
    names = span.site.modules[0].split(".")[:-1]
    around = (model.get_submodule(".".join(names[:depth])) for depth in range(len(names)))
    return all(type(module).forward is nn.Sequential.forward for module in around)


def _is_hooked(first: nn.Module, last: nn.Module) -> bool:
    """Whether hooks at the ends of a span may change what lies between them and its grafts; those of ``torch.nn.utils``
    only compute a weight."""
    hooks = (*first._forward_pre_hooks.values(), *last._forward_hooks.values())
    return not all(type(hook).__module__.startswith("torch.nn.utils") for hook in hooks)


def _hook_span(first: nn.Module, last: nn.Module, place: Place, inputs: Any, is_wider: bool) -> None:
    """The fossils of a span as hooks of its first and last module, whoever calls them.

    The first hook leaves its input in ``inputs``, which both modules have, under the thread's own key; the last one
    takes it, if there is any.
    """
    holder = _hold(last, _span(_grown(place, is_wider)))
    path = next(name for name, module in last.named_modules() if module is holder)
    vars(first)[INPUTS] = vars(last)[INPUTS] = inputs
    graph = fx.Graph()
    module, args = placeholders(graph, "module", "args")
    kept = getattr(module, INPUTS)
    kept.update([((place.layer_id, path, kept.thread()), (args[0],))])
    graph.output(None)
    first.register_forward_pre_hook(fx.GraphModule(nn.Module(), graph, "SpanStart"))
    graph = fx.Graph()
    module, _, output = placeholders(graph, "module", "args", "output")
    kept, add = getattr(module, INPUTS), module.get_submodule(path)
    found = kept.pop((place.layer_id, path, kept.thread()), ())
    grown = graph.call_function(functools.reduce, (add.node, found.node, output.node))  # nothing outside the span
    grown.meta["is_wrapped"] = True
    graph.output(grown)
    last.register_forward_hook(fx.GraphModule(nn.Module(), graph, "SpanEnd"), prepend=True)


def _span(grown: Grown) -> fx.GraphModule:
    """The fossils of a span: ``(output, x)`` to the output with them."""
    root, graph = nn.Module(), fx.Graph()
    output, x = placeholders(graph, "output", "x")
    return graph_module(root, graph, _add_fossils(root, grown, x, output), grown.is_training)


def _add_fossils(root: nn.Module, grown: Grown, x: Any, output: Any) -> Any:
    """The host's output with all fossils of a place, in the form that the host gives it."""
    ports, geometry, (form, *where) = grown.site.ports, grown.site.geometry, grown.site.form
    graph, tracer = output.node.graph, output.tracer
    whole: Any = geometry.channels_last(_written(output, form, where))
    y = whole[..., : ports.outputs] if grown.is_wider else whole
    read: Any = geometry.read(_own_channels(x, grown), y) if ports.inputs else None
    for graft, _, params, _ in grown.parts:
        name = f"graft_{graft.lifecycle}"
        assert isinstance(graft.blueprint, Blueprint)
        root.add_module(name, graft.blueprint.to_module(graft.ports, params).train(grown.is_training))
        start, end = graft.channels
        source = read if graft.blueprint.reads == "input" else y.narrow(-1, start, end - start)
        delta: Any = fx.Proxy(graph.call_module(name, (source.node,)), tracer)
        if graft.blueprint.reads == "input":
            delta = geometry.settle(delta, y)
        before, after = start, ports.outputs - end
        if before or after:
            delta = F.pad(delta, (before, after))
        y = y + delta
    if grown.is_wider:
        y = torch.cat([y, whole[..., ports.outputs :]], -1)
    y = geometry.restore(y)
    return _replaced(output, form, where, y.contiguous() if geometry.output_axis == 1 else y)


def _own_channels(x: Any, grown: Grown) -> Any:
    """The host's channels of what grafts read."""
    if not grown.is_wider:
        return x
    geometry = grown.site.geometry
    features = {"flatten": math.prod(geometry.grid), "patches": geometry.cells**2}.get(geometry.adapter, 1)
    own = slice(grown.site.ports.inputs // features)
    return x[:, own] if geometry.input_axis == 1 else x[..., own]


def _written(output: Any, form: str, where: list[Any]) -> Any:
    if form == "tensor":
        return output
    return getattr(output, where[0]) if form in ("dataclass", "named") else output[where[0]]


def _replaced(output: Any, form: str, where: list[Any], y: Any) -> Any:
    """As in :func:`esper.kasmina.outputs.with_tensor`, in a graph."""
    graph = output.node.graph
    match form:
        case "items":
            return operator.add(output[: where[0]], (y,)) + output[where[0] + 1 :]
        case "list":
            return operator.add(output[: where[0]], [y]) + output[where[0] + 1 :]
        case "named":
            return output._replace(**{where[0]: y})
        case "mapping":
            return output | {where[0]: y}
        case "dataclass":
            node = graph.call_function(dataclasses.replace, (output.node,), {where[0]: y.node})
            node.meta["is_wrapped"] = True  # a call in the source, also where the source is traced to be loaded
            return fx.Proxy(node, output.tracer)
    return y
