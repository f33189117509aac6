"""Ports and geometry of places: from an example batch, else from the first and last layer with parameters."""

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from esper.blueprints.blueprint import Ports
from esper.contracts.errors import ConfigError
from esper.contracts.reports import POSITION_AXES, Layout
from esper.contracts.settings.places import PlaceSettings
from esper.kasmina.geometry import Geometry, flat_grid, patch_cells, patch_side
from esper.kasmina.host.axes import axes_of
from esper.kasmina.host.caches import MIXED, decodes_with_cache
from esper.kasmina.host.channel_classes import ChannelClass, channel_classes
from esper.kasmina.host.edges import (
    edge_of,
    first_and_last,
    is_linear_like,
    is_opaque,
    keeps_positions,
    layers_of,
    outermost,
)
from esper.kasmina.host.stretches import Stretch
from esper.kasmina.host.tracing import Seen, Trace, TracedPlace, watching
from esper.kasmina.places.site import Site


def sites(model: nn.Module, candidates: Sequence[Stretch], config: PlaceSettings, example: Any) -> list[Site | None]:
    """The site of every candidate; None for one that nobody named and that cannot be told or does not fit.

    Raises:
        ConfigError: if a named candidate cannot be a place, naming the remedy, or none can.
    """
    lies = _found(model, candidates, config, example)
    found = [_with_channels(one, site) for one, site in zip(candidates, lies, strict=True)]
    if not any(found):
        raise ConfigError(
            f"None of the layers that could carry seeds ({', '.join(repr(one.layer_id) for one in candidates[:5])}) "
            "writes real numbers along a batch and channels, so there is no place to grow. Give an example with a "
            "batch, or name others in layers."
        )
    return found


def _with_channels(one: Stretch, site: Site | None) -> Site | None:
    """A site that has any channels to write."""
    if site is None or site.ports.outputs:
        return site
    if one.is_named:
        raise ConfigError(f"{one.layer_id!r} writes no channels, so it cannot carry seeds. Leave it out of layers.")
    return None


def _found(
    model: nn.Module, candidates: Sequence[Stretch], config: PlaceSettings, example: Any
) -> Iterator[Site | None]:
    is_batch_second = any(is_opaque(module) and not getattr(module, "batch_first", True) for module in model.modules())
    has_cache = decodes_with_cache(model)
    if example is None:
        yield from (_without_mixing(_from_layers(one, config, is_batch_second), has_cache) for one in candidates)
        return
    trace = _run(model, candidates, config, example)
    has_cache |= trace.has_cache
    for one in candidates:
        try:
            x, y = trace.inputs.get(one.layer_id), trace.outputs.get(one.layer_id)
            site = _without_mixing(_from_example(one, config, x, y, is_batch_second), has_cache)
        except ConfigError:
            if one.is_named:
                raise
            site = None
        yield None if site is None else replace(site, is_walked=one.layer_id in trace.walked)


def container_of(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The ``nn.Sequential`` in which a span lies."""
    return model.get_submodule(names[0].rpartition(".")[0])


def shown(site: Site, x: Seen | None, y: Seen, *, has_cache: bool = False) -> Site:
    """The site as a run shows it.

    Args:
        site: as it was known.
        x: the place's input in the run.
        y: its output.
        has_cache: whether the model used a cache in it.

    Raises:
        ConfigError: if it reads or writes other widths.
    """
    name = repr(site.layer_id) if site.layer_id else "The model"
    remedy = "Its layers do not tell: pass example=batch to esper.wrap, or name other places."
    old = site.geometry
    if not y.is_float or len(y.shape) < 2 or y.shape[old.output_axis] != site.ports.outputs:
        raise ConfigError(f"{name} wrote {tuple(y.shape)}, not {site.ports.outputs} channels. {remedy}")
    inputs, geometry = 0, old
    if site.ports.inputs and x is not None and x.is_float and len(x.shape) >= 2:
        axis = -1 if len(x.shape) == 2 else old.input_axis
        inputs, geometry = _reading(x, y, replace(old, input_axis=axis), is_shared=old.adapter == "pool")
        if inputs != site.ports.inputs:
            inputs, geometry = _reading_all(x, y, geometry, site.ports.inputs)
    lengths = _worked_at(geometry, x, y)
    layout: Layout = site.ports.layout if len(lengths) == POSITION_AXES[site.ports.layout] else "features"
    ports = site.ports._replace(layout=layout, positions=math.prod(lengths))
    if inputs != site.ports.inputs:
        got = "nothing" if x is None else tuple(x.shape)
        raise ConfigError(f"{name} read {got}, not {site.ports.inputs} features. {remedy}")
    argument = x.argument if x is not None else site.argument
    told = replace(site, ports=ports, geometry=geometry, form=y.form, argument=argument)
    found = _without_mixing(told, has_cache)
    assert found is not None
    return found


def _without_mixing(site: Site | None, has_cache: bool) -> Site | None:
    """A site at which nothing that mixes tokens fits, where the model decodes with a cache."""
    if site is None or not has_cache or site.ports.layout not in MIXED:
        return site
    return replace(site, ports=site.ports._replace(layout="features"), uncached=site.ports.layout)


def _from_layers(one: Stretch, config: PlaceSettings, is_batch_second: bool) -> Site | None:
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
    behind = outermost(*one.modules)[1]
    output_axis = wanted or (behind.axis if behind and behind.outputs == last.outputs else last.axis)
    geometry = Geometry(wanted or first.axis, output_axis, last.is_batch_first or not is_layer)
    if first.axis == 1 and first.positions:
        if output_axis == -1:
            geometry = replace(geometry, adapter="pool")
        elif not all(keeps_positions(module) for host in one.modules for module in host.modules()):
            geometry = replace(geometry, adapter="pool", positions=first.positions)
    layout: Layout = last.layout if is_layer or output_axis == last.axis == 1 else "features"
    if geometry.adapter == "pool":
        layout = first.layout
    if layout == "tokens" and is_batch_second and geometry.is_batch_first:
        layout = "features"  # as below
    field = _matching(config.output_fields, one.layer_id)
    return Site(
        one.layer_id,
        one.kind,
        Ports(first.inputs, last.outputs, layout),
        geometry,
        one.names,
        field,
        is_step=one.is_step,
    )


def _from_example(one: Stretch, config: PlaceSettings, x: Seen | None, y: Seen | None, is_batch_second: bool) -> Site:
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
    if one.kind == "model" and y.has_loss:
        raise ConfigError(
            "The whole model computes its loss itself, before a graft around it could add anything. Name layers or "
            "blocks within, or give no labels and compute the loss outside."
        )
    edges = first_and_last(*one.modules)
    x = x if x is not None and x.is_float and len(x.shape) >= 2 else None
    input_axis, output_axis = axes_of(one, x, y, _matching(config.axis, one.layer_id))
    layout = _layout(y, output_axis)
    is_batch_first = layout != "tokens" or edges is None or (edges[0].is_batch_first and edges[1].is_batch_first)
    if layout == "tokens" and is_batch_second and is_batch_first:
        layout = "features"  # nobody tells whether its batch comes first: a graft must not mix samples
    inputs, geometry = 0, Geometry(output_axis, output_axis, is_batch_first)
    if x is not None:
        is_shared = _shares_along_positions(one)
        inputs, geometry = _reading(x, y, replace(geometry, input_axis=input_axis), is_shared=is_shared)
        if edges and not edges[0].positions and x.shape[input_axis] != edges[0].inputs:
            every, flat = _reading_all(x, y, geometry, edges[0].inputs)
            inputs, geometry = (every, flat) if every else (inputs, geometry)
        if geometry.adapter == "pool":
            layout = _layout(x, input_axis)
        has_tokens = "tokens" in (_layout(x, input_axis), _layout(y, output_axis))
        if is_batch_second and has_tokens and geometry.adapter != "same":  # as many tokens as samples: nobody can tell
            inputs, geometry = 0, Geometry(output_axis, output_axis, is_batch_first)
    is_unknown_layer = one.kind == "layer" and edge_of(one.modules[0]) is None
    if config.layers is None and is_unknown_layer and not is_linear_like(one.modules[0], inputs, y.shape[output_axis]):
        raise ConfigError(f"{name} is no layer that maps features to channels.")
    if not one.is_named and one.kind != "layer" and (not inputs or _loses_sharing(one, y, geometry)):
        raise ConfigError(f"{name} is no path that a graft could run beside.")
    field = _matching(config.output_fields, one.layer_id)
    ports = Ports(inputs, y.shape[output_axis], layout, math.prod(_worked_at(geometry, x, y)))
    argument = x.argument if x is not None else 0
    lies = Site(one.layer_id, one.kind, ports, geometry, one.names, field, y.form, one.is_step)
    return replace(lies, argument=argument)


def _loses_sharing(one: Stretch, y: Seen, geometry: Geometry) -> bool:
    """Whether layers share weights along positions that neither end of the place shows: a path of features around them
    would have to learn from scratch what sharing gives for nothing. Tokens may be padding, which nobody tells, so that
    their mean is no better."""
    keeps = geometry.adapter == "pool" and geometry.input_axis == 1
    return len(y.shape) == 2 and not keeps and _shares_along_positions(one)


def _shares_along_positions(one: Stretch) -> bool:
    """Whether layers share weights along positions."""
    edges = (edge_of(layer) for module in one.modules for layer in layers_of(module))
    return any(edge is not None and (edge.positions or edge.layout == "tokens") for edge in edges)


def _layout(y: Seen, axis: int) -> Layout:
    positions = len(y.shape) - 2
    if positions == 1:
        return "tokens" if axis == -1 else "signal"
    return "image" if positions == 2 and axis == 1 else "features"


def _worked_at(geometry: Geometry, x: Seen | None, y: Seen) -> tuple[int, ...]:
    """Positions at which grafts work that read the place's input."""
    if geometry.adapter == "pool" and x is not None:
        return _lengths(x, geometry.input_axis)
    return _lengths(y, geometry.output_axis)


def _reading(x: Seen, y: Seen, like: Geometry, *, is_shared: bool) -> tuple[int, Geometry]:
    """Features that a graft can read, and how; 0 if it can read none.

    Averaging along tokens would let a token see later ones, so sequences of other lengths are not read.

    Args:
        x: the place's input.
        y: its output.
        like: with their axes.
        is_shared: whether the place's layers share weights along positions.
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
    if not positions and is_shared:
        return channels, replace(like, adapter="pool", positions=0, grid=())
    if not positions:
        grid = like.grid if len(like.grid) == len(x_lengths) else flat_grid(channels, x_lengths)
        return channels * math.prod(grid), replace(like, adapter="flatten", positions=0, grid=grid)
    if not x_lengths:
        return channels, replace(like, adapter="spread", positions=positions, grid=())
    if len(x_lengths) == positions and (like.output_axis == 1 or positions > 1):
        return channels, replace(like, adapter="pool", positions=positions, grid=())
    if len(x_lengths) == 2 and positions == 1 and like.output_axis == -1:
        side = patch_side(x_lengths, y_lengths[0])
        if side is not None:
            cells = patch_cells(channels, side)
            return channels * cells**2, replace(like, adapter="patches", cells=cells, cell=side // cells)
    return 0, like


def _reading_all(x: Seen, y: Seen, like: Geometry, features: int) -> tuple[int, Geometry]:
    """As :func:`_reading` for a place that flattens its input as a whole to so many features, which grafts then read
    too; 0 if it does not."""
    lengths = tuple(x.shape[2:])
    if len(y.shape) > 2 or not 1 <= len(lengths) <= 3 or math.prod(x.shape[1:]) != features:
        return 0, like
    return features, replace(like, input_axis=1, adapter="flatten", positions=0, grid=lengths)


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


def _run(model: nn.Module, candidates: Sequence[Stretch], config: PlaceSettings, example: Any) -> Trace:
    """What one forward pass in eval mode shows of all candidates; no random state changes."""
    watched = [
        TracedPlace(
            one.layer_id,
            one.modules[0],
            one.modules[-1],
            _matching(config.output_fields, one.layer_id),
            around=container_of(model, one.names) if one.kind == "span" else None,
        )
        for one in candidates
    ]
    with looking(model), watching(model, watched) as trace:
        call(model, example)
    return trace


def classes_of(model: nn.Module, example: Any) -> list[ChannelClass]:
    """Which channels of a model belong together, as one forward pass in eval mode shows; no random state changes."""
    with looking(model):
        return channel_classes(model, lambda: call(model, example))


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; no random state changes."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def call(model: nn.Module, example: Any) -> Any:
    """The model's output for an example as :func:`esper.wrap` takes it."""
    args, kwargs = ((), example) if isinstance(example, Mapping) else (example, {})
    try:
        return model(*(args if isinstance(args, tuple) else (args,)), **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"The model cannot be called on the example ({error}). A tuple gives its positional arguments, a mapping "
            "its keyword arguments; anything else is its only argument, as is the one item of example=(x,)."
        ) from error
