"""Ports and geometry of places: from an example batch, else from the first and last layer with parameters."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from esper.blueprints.blueprint import POSITION_AXES, Ports
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Layout
from esper.kasmina.candidates import Candidate
from esper.kasmina.edges import Edge, edge_of, first_and_last, is_opaque, keeps_positions, layers_of
from esper.kasmina.geometry import Geometry, flat_grid
from esper.kasmina.place import Site
from esper.kasmina.tracing import Seen, Watched, watching


def sites(model: nn.Module, candidates: Sequence[Candidate], config: GrowthConfig, example: Any) -> list[Site | None]:
    """The site of every candidate; None for one that nobody named and that cannot be told or does not fit.

    Raises:
        ConfigError: if a named candidate cannot be a place, naming the remedy.
    """
    is_batch_second = any(is_opaque(module) and not module.batch_first for module in model.modules())
    if example is None:
        return [_from_layers(one, config, is_batch_second) for one in candidates]
    inputs, outputs = _run(model, candidates, config, example)
    found: list[Site | None] = []
    for one in candidates:
        try:
            found.append(
                _from_example(one, config, inputs.get(one.layer_id), outputs.get(one.layer_id), is_batch_second)
            )
        except ConfigError:
            if one.is_named:
                raise
            found.append(None)
    if not any(found):
        raise ConfigError("None of the layers that carry seeds was called on the example. Name others in layers.")
    return found


def shown(site: Site, x: Seen | None, y: Seen) -> Site:
    """The site as a run shows it.

    Raises:
        ConfigError: if it reads or writes other widths.
    """
    name = repr(site.layer_id) if site.layer_id else "The model"
    remedy = "Its layers do not tell: pass example=batch to esper.wrap, or name other places."
    old = site.geometry
    if not y.is_float or len(y.shape) < 2 or y.shape[old.output_axis] != site.ports.outputs:
        raise ConfigError(f"{name} wrote {tuple(y.shape)}, not {site.ports.outputs} channels. {remedy}")
    layout: Layout = site.ports.layout if len(y.shape) - 2 == POSITION_AXES[site.ports.layout] else "features"
    ports = site.ports._replace(layout=layout, positions=math.prod(_lengths(y, old.output_axis)))
    if not ports.inputs:
        return replace(site, ports=ports, form=y.form)
    inputs, geometry = 0, old
    if x is not None and x.is_float and len(x.shape) >= 2:
        axis = -1 if len(x.shape) == 2 else old.input_axis
        inputs, geometry = _reading(x, y, replace(old, input_axis=axis))
    if inputs != site.ports.inputs:
        got = "nothing" if x is None else tuple(x.shape)
        raise ConfigError(f"{name} read {got}, not {site.ports.inputs} features. {remedy}")
    return replace(site, ports=ports, geometry=geometry, form=y.form)


def _from_layers(one: Candidate, config: GrowthConfig, is_batch_second: bool) -> Site | None:
    edges = first_and_last(*one.modules)
    if edges is None:
        kind = type(one.modules[-1]).__name__
        raise ConfigError(
            f"Cannot tell the widths of {one.layer_id!r} ({kind}) from its layers. Pass example=batch to esper.wrap."
        )
    if one.kind in ("block", "model") and not (one.is_named or isinstance(one.modules[0], nn.Sequential)):
        return None  # layers are registered in any order: only a run shows what such a block reads and writes
    first, last = edges
    is_layer, wanted = one.kind == "layer", _matching(config.axis, one.layer_id)
    geometry = Geometry(wanted or first.axis, wanted or last.axis, last.is_batch_first or not is_layer)
    if first.axis == 1 and first.positions:
        if last.axis == -1:
            geometry = replace(geometry, adapter="flatten", grid=(1,) * first.positions)
        elif not all(keeps_positions(module) for host in one.modules for module in host.modules()):
            geometry = replace(geometry, adapter="pool", positions=first.positions)
    layout: Layout = last.layout if is_layer or last.axis == 1 else "features"
    if layout == "tokens" and is_batch_second and geometry.is_batch_first:
        layout = "features"  # as below
    field = _matching(config.output_fields, one.layer_id)
    return Site(one.layer_id, one.kind, Ports(first.inputs, last.outputs, layout), geometry, one.names, field)


def _from_example(one: Candidate, config: GrowthConfig, x: Seen | None, y: Seen | None, is_batch_second: bool) -> Site:
    name = repr(one.layer_id) if one.layer_id else "The model"
    if y is None or not y.is_float or len(y.shape) < 2:
        got = "gave no tensor" if y is None else f"gave a tensor of shape {tuple(y.shape)}"
        raise ConfigError(
            f"{name} was not called on the example, or {got}: a graft has nothing to write. Name other layers, or a "
            "field of its output in output_fields."
        )
    if isinstance(one.modules[-1], nn.RNNBase) and y.form != ("items", 0, 2):
        raise ConfigError(
            f"{name} runs on packed sequences: its only plain output is its last state, which is no place for a graft. "
            "Name other layers."
        )
    edges, wanted = first_and_last(*one.modules), _matching(config.axis, one.layer_id)
    last = edges[1] if edges else None
    output_axis = wanted or _axis(name, y, last)
    layout = _layout(y, output_axis)
    is_batch_first = layout != "tokens" or edges is None or (edges[0].is_batch_first and edges[1].is_batch_first)
    if layout == "tokens" and is_batch_second and is_batch_first:
        layout = "features"  # nobody tells whether its batch comes first: a graft must not mix samples
    inputs, geometry = 0, Geometry(output_axis, output_axis, is_batch_first)
    if x is not None and x.is_float and len(x.shape) >= 2:
        input_axis = -1 if len(x.shape) == 2 else wanted or (edges[0].axis if edges else output_axis)
        inputs, geometry = _reading(x, y, replace(geometry, input_axis=input_axis))
        has_tokens = "tokens" in (_layout(x, input_axis), _layout(y, output_axis))
        if is_batch_second and has_tokens and geometry.adapter != "same":  # as many tokens as samples: nobody can tell
            inputs, geometry = 0, Geometry(output_axis, output_axis, is_batch_first)
    if not one.is_named and one.kind != "layer" and (not inputs or _loses_positions(one, y)):
        raise ConfigError(f"{name} is no path that a graft could run beside.")
    field = _matching(config.output_fields, one.layer_id)
    ports = Ports(inputs, y.shape[output_axis], layout, math.prod(_lengths(y, output_axis)))
    return Site(one.layer_id, one.kind, ports, geometry, one.names, field, y.form)


def _loses_positions(one: Candidate, y: Seen) -> bool:
    """Whether layers that share weights along positions come out without any: a path of features around them would have
    to learn from scratch what sharing gives for nothing."""
    edges = (edge_of(layer) for module in one.modules for layer in layers_of(module))
    return len(y.shape) == 2 and any(edge is not None and (edge.positions or edge.layout == "tokens") for edge in edges)


def _axis(name: str, y: Seen, last: Edge | None) -> int:
    if len(y.shape) == 2:
        return -1
    if last is None:
        raise ConfigError(
            f"{name} gave a tensor of shape {tuple(y.shape)} and its layers do not tell where the channels are. Say "
            f"so: GrowthConfig(axis={{{name}: 1}}), or -1 for the last axis."
        )
    return last.axis


def _layout(y: Seen, axis: int) -> Layout:
    positions = len(y.shape) - 2
    if positions == 1:
        return "tokens" if axis == -1 else "signal"
    return "image" if positions == 2 and axis == 1 else "features"


def _reading(x: Seen, y: Seen, like: Geometry) -> tuple[int, Geometry]:
    """Features that a graft can read, and how; 0 if it can read none.

    Pooling along tokens would let a token see later ones, so sequences of other lengths are not read.
    """
    channels, batch = x.shape[like.input_axis], 0 if like.is_batch_first else 1
    x_lengths, y_lengths = _lengths(x, like.input_axis), _lengths(y, like.output_axis)
    positions = len(y_lengths)
    if x.shape[batch] != y.shape[batch]:
        return 0, like
    if x_lengths == y_lengths:
        return channels, replace(like, adapter="same", positions=0, grid=())
    if not like.is_batch_first or max(positions, len(x_lengths)) > 3:
        return 0, like
    if not positions:
        grid = like.grid if len(like.grid) == len(x_lengths) else flat_grid(channels, x_lengths)
        return channels * math.prod(grid), replace(like, adapter="flatten", positions=0, grid=grid)
    if not x_lengths:
        return channels, replace(like, adapter="spread", positions=positions, grid=())
    if like.output_axis == 1 and len(x_lengths) == positions:
        return channels, replace(like, adapter="pool", positions=positions, grid=())
    return 0, like


def _lengths(seen: Seen, axis: int) -> tuple[int, ...]:
    lengths = tuple(seen.shape)
    if len(lengths) == 2:
        return ()
    return lengths[2:] if axis == 1 else lengths[1:-1]


def _matching(options: Mapping[str, Any] | None, layer_id: str) -> Any:
    for pattern, value in (options or {}).items():
        if fnmatch.fnmatch(layer_id, pattern):
            return value
    return None


def _run(
    model: nn.Module, candidates: Sequence[Candidate], config: GrowthConfig, example: Any
) -> tuple[dict[str, Seen | None], dict[str, Seen | None]]:
    """Inputs and outputs of all candidates in one forward pass in eval mode; no random state changes."""
    watched = [
        Watched(one.layer_id, one.modules[0], one.modules[-1], _matching(config.output_fields, one.layer_id))
        for one in candidates
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(), watching(model, watched) as trace:
            model.eval()
            _call(model, example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return trace.inputs, trace.outputs


def _call(model: nn.Module, example: Any) -> None:
    args, kwargs = ((), example) if isinstance(example, Mapping) else (example, {})
    try:
        model(*(args if isinstance(args, tuple) else (args,)), **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"The model cannot be called on the example ({error}). A tuple gives its positional arguments, a mapping "
            "its keyword arguments; anything else is its only argument, as is the one item of example=(x,)."
        ) from error
