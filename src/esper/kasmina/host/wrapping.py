"""Giving a model seeds, and taking them away."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.contracts.reports import Piece
from esper.contracts.settings.places import PlaceSettings
from esper.kasmina.grafts.activity import Called
from esper.kasmina.grafts.strategies import strategy_kind
from esper.kasmina.host.anchoring import anchor_of, check_module, is_espers, places, to_bare_class
from esper.kasmina.host.caches import refuse_mixing_alone
from esper.kasmina.host.copies import ESPER
from esper.kasmina.host.founding import colonies_of
from esper.kasmina.host.founding import found as found_colony
from esper.kasmina.host.layer import Anchor, KasminaLayer
from esper.kasmina.host.measuring import container_of, shown, sites
from esper.kasmina.host.refusals import refuse_bypassed, refuse_unfit, refuse_unswappable
from esper.kasmina.host.stretches import Stretch, choose
from esper.kasmina.host.tracing import Trace, TracedPlace, watching
from esper.kasmina.places.place import Place
from esper.kasmina.places.site import Site
from esper.shards import is_sharded_module


def wrap(model: nn.Module, config: GrowthConfig | None = None, example: Any = None) -> nn.Module:
    """Give a model seeds, in place. Until one of them grows, the model computes exactly what it did before.

    Args:
        model: the host. Wrap it before the optimizer is built.
        config: where and how much it may grow; see :class:`esper.GrowthConfig`.
        example: an input of the model, from which the widths and axes of places are measured: a tensor, a tuple of
            positional or a mapping of keyword arguments. Modules of any class can be places then, also by a pattern.
            Without one widths and axes come from the first and last layer of each place, and of blocks only
            ``nn.Sequential`` are chosen by themselves. The model keeps it, so that :func:`esper.export` can compare
            what it makes.

    Where a model decodes with a key-value cache (the example shows one, or ``generate`` would use one), blueprints that
    mix tokens are not offered, since they keep nothing between calls. ``model.config.use_cache = False`` before this
    call offers them (some models decode by further configurations, as T5 by ``model.decoder.config``); generation with
    a cache is refused then once one of them has grown.

    Returns:
        The same object.

    Raises:
        ConfigError: if the model cannot be wrapped, a pattern matches nothing, or a place cannot carry seeds; the
            model is unchanged then.
    """
    config = GrowthConfig() if config is None else config
    if not isinstance(config, GrowthConfig):
        raise ConfigError(
            f"config must be an esper.GrowthConfig, not {config!r:.80}. Settings are its keywords, such as "
            "esper.GrowthConfig(seeds_per_layer=64); an input of the model is example=..."
        )
    for blueprint_id in config.blueprints:
        make_blueprint(blueprint_id, {})
    if config.strategy is not None:
        strategy_kind(config.strategy)
    refuse_unfit(model)
    if config.colonies and example is None:
        raise ConfigError("colonies are found by running the model once: give esper.wrap an example of its input.")
    candidates = choose(model, config.layers, config.exclude, is_measured=example is not None)
    _refuse_idle(config, [one.layer_id for one in candidates])
    for one in candidates:
        for end in (one.modules[0], one.modules[-1]):
            refuse_unswappable(repr(one.layer_id) if one.layer_id else "The model", end)
    refuse_unswappable("The model", model)
    like = next(model.parameters())
    found = []
    for one, site in zip(candidates, sites(model, candidates, config, example), strict=True):
        if site is not None:
            parameter = next(one.modules[-1].parameters(), like)
            place = Place(site, _num_seeds(one, site, config), one.host_parameters, parameter, config)
            found.append((one, place))
    refuse_mixing_alone(model, [place.site for _, place in found], config.blueprints)
    settled, not_offered = colonies_of(model, found, config, example)
    anchor_of(model).config, anchor_of(model).not_offered = config, not_offered
    anchor_of(model).example = dict(example) if isinstance(example, Mapping) else example
    for one, place in sorted(found, key=lambda pair: pair[0].kind == "span"):  # a module's own seeds write first
        anchor_of(one.modules[-1]).hold(_key(one), place)
        if one.kind == "span":
            anchor_of(one.modules[0]).feed(place)
    for site in settled:
        found_colony(model, site, config)
    for module in list(model.modules()):
        if isinstance(module, nn.TransformerEncoder) and next(places(module), None) is not None:
            anchor_of(module)
    called = Called()
    for place in places(model):
        called.know(place.arena.activities)
    anchor_of(model).activity.called = called
    kin = [module._esper for module in _wrapped(model)]
    for module in _wrapped(model):
        module._esper.kin = kin
        module._esper.train(module.training)
    anchor_of(model).layout = _layout(model)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Take all seeds away, in place: the model is of its old class again, with nothing of Esper in it.

    Raises:
        ConfigError: if it is sharded, or has grown, since the bare host alone would compute something else.
    """
    grown = [place.layer_id for place in places(model) if place.is_growing]
    if grown:
        raise ConfigError(
            f"The model has grown at {', '.join(map(repr, grown))}; without its grafts it would compute something "
            "else. esper.export(model) keeps them; esper.host_state_dict(model) gives the bare host's weights."
        )
    if any(map(is_sharded_module, model.modules())):
        raise ConfigError("The model is sharded by fully_shard. Call esper.unwrap before that.")
    for module in _wrapped(model):
        to_bare_class(module)
    return model


def host_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without Esper's keys: it loads strictly into the bare host.

    Raises:
        ConfigError: if it is of no module.
    """
    check_module(model)
    return {key: value for key, value in model.state_dict().items() if not is_espers(key)}


def place_named(model: nn.Module, layer_id: str) -> Place:
    """The place of that name.

    Raises:
        ConfigError: if there is none, naming the closest.
    """
    found = {place.layer_id: place for place in places(model)}
    if layer_id not in found:
        raise ConfigError(f"There is no place {layer_id!r}. {closest(layer_id, found)}")
    return found[layer_id]


def growth_config(model: nn.Module) -> GrowthConfig:
    """The configuration that a model was wrapped with.

    Raises:
        ConfigError: if it is no module, or was not wrapped, something was put around it since, or a module was given a
            forward that goes past its seeds.
    """
    check_module(model)
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    if not isinstance(model, KasminaLayer) and isinstance(inner, KasminaLayer):
        remedy = "call the compiled one in loss; or compile in place: model.compile()"
        if not hasattr(model, "_orig_mod"):
            remedy = "call it in loss too: Esper trains in one process, on one copy of the model"
        raise ConfigError(
            f"The model is a {type(model).__name__} around a wrapped model. Give Session the wrapped model itself and "
            f"{remedy}."
        )
    if not isinstance(model, KasminaLayer) and _wrapped(model):
        raise ConfigError(
            f"The model is a {type(model).__name__} around a wrapped model. Add adapters, or whatever else goes around "
            "it, first; then call esper.wrap on the whole."
        )
    anchor = model._modules.get(ESPER)
    if anchor is None or anchor.config is None:
        raise ConfigError("The model carries no seeds. Call esper.wrap(model, config) before anything else.")
    assert isinstance(anchor.config, GrowthConfig)
    refuse_bypassed(model)
    return anchor.config


def refuse_changed(model: nn.Module) -> None:
    """Refuse a model in which layers were replaced or resized since it was wrapped: their seeds are gone, or measured
    for another shape.

    Raises:
        ConfigError: naming the layer and the remedy.
    """
    anchor = model._modules[ESPER]
    assert isinstance(anchor, Anchor)
    now = _layout(model)
    for name, was in anchor.layout.items():
        if now.get(name, was) != was or (not was and name not in now):
            what = (
                f"was {was} when the model was wrapped and is {now[name]} now"
                if was
                else "was replaced since esper.wrap"
            )
            raise ConfigError(
                f"{name!r} {what}, so its seeds are gone or do not fit. Change the model first, then wrap it; "
                "esper.unwrap(model) takes off the seeds that are left."
            )


def host_parameters(model: nn.Module) -> int:
    """Number of parameters of the bare host."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not is_espers(name))


def covered_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The host parameters that each place covers, by the place's name, each once."""
    modules = dict(model.named_modules(remove_duplicate=False))
    covered = {}
    for place in places(model):
        named = (pair for name in place.site.modules for pair in modules[name].named_parameters())
        unique = {id(parameter): parameter for name, parameter in named if not is_espers(name)}
        covered[place.layer_id] = list(unique.values())
    return covered


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Record what the forward passes inside show of every place, and tell its seeds which activation follows them.

    Raises:
        ConfigError: if the widths of a place turn out to be other than its layers told.
    """
    ends = {place.layer_id: module for module in _wrapped(model) for place in module._esper}
    starts = ends | {place.layer_id: module for module in _wrapped(model) for place in module._esper.feeds}
    found = [place for place in places(model) if place.kind != "colony"]
    settled = [place for place in places(model) if place.kind == "colony"]
    watched = [_watched(model, place, starts[place.layer_id], ends[place.layer_id]) for place in found]
    watched += [_limb(model, place, piece) for place in settled for piece in place.site.pieces if piece.role != "table"]
    with ExitStack() as holding:  # what follows a place, and with it the threshold of its telemetry, is known behind it
        for place in found:
            holding.enter_context(place.telemetry.holding())
        with watching(model, watched) as trace:
            yield trace
        _show(found, trace)
        for place in settled:
            _show_colony(place, trace)


def _show(found: Sequence[Place], trace: Trace) -> None:
    for place in found:
        x, y = trace.inputs.get(place.layer_id), trace.outputs.get(place.layer_id)
        if y is None and trace.calls[place.layer_id]:
            name = repr(place.layer_id) if place.layer_id else "The model"
            raise ConfigError(f"{name} gave no tensor that a graft could be added to. Name other layers.")
        if y is not None:
            site = shown(place.site, x, y, has_cache=trace.has_cache)
            site = replace(site, is_walked=place.layer_id in trace.walked)
            place.show(site, trace.thresholds.get(place.layer_id))


def _watched(model: nn.Module, place: Place, first: nn.Module, last: nn.Module) -> TracedPlace:
    inputs = place.ports.inputs if place.site.geometry.adapter == "pool" else 0
    container = container_of(model, place.site.modules) if place.kind == "span" else None
    return TracedPlace(place.layer_id, first, last, place.site.field, place.ports.outputs, inputs, container)


def _limb(model: nn.Module, place: Place, piece: Piece) -> TracedPlace:
    module = model.get_submodule(piece.module)
    return TracedPlace(_name_of(place, piece), module, module, outputs=piece.outputs)


def _name_of(place: Place, piece: Piece) -> str:
    return f"{place.layer_id} at {piece.module} ({piece.role})"


def _show_colony(place: Place, trace: Trace) -> None:
    """Let a colony know how many rows its pieces see, and the trace how often all of it was called."""
    limbs = {piece: _name_of(place, piece) for piece in place.site.pieces if piece.role != "table"}
    calls, rows = {name: trace.calls.pop(name) for name in limbs.values()}, {}
    for piece, name in limbs.items():
        rows[piece], trace.thresholds = trace.rows.pop(name), {n: v for n, v in trace.thresholds.items() if n != name}
    trace.calls[place.layer_id] = min(calls.values())
    trace.rows[place.layer_id] = 1 if trace.calls[place.layer_id] else 0
    pieces = tuple(replace(piece, rows=rows.get(piece, 0)) for piece in place.site.pieces)
    place.show(replace(place.site, pieces=pieces), None)


def _refuse_idle(config: PlaceSettings, names: Sequence[str]) -> None:
    """Refuse what is said of places that there are not."""
    for setting in ("axis", "output_fields"):
        for pattern in getattr(config, setting) or ():
            if not fnmatch.filter(names, pattern):
                raise ConfigError(f"{setting}: {pattern!r} matches no place. {closest(pattern, names)}")


def _num_seeds(one: Stretch, site: Site, config: PlaceSettings) -> int:
    outputs = site.ports.outputs
    if one.num_seeds is None:
        return min(config.seeds_per_layer, outputs) if one.kind == "layer" else 1
    if one.num_seeds > outputs:
        raise ConfigError(
            f"{one.layer_id!r} has {outputs} output channels and cannot carry {one.num_seeds} seeds. Ask for at most "
            f"{outputs}."
        )
    return one.num_seeds


def _wrapped(model: nn.Module) -> list[KasminaLayer]:
    return [module for module in model.modules() if isinstance(module, KasminaLayer)]


def _layout(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of the host by name, and no shape for every place that starts or ends in it
    under its name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    held = [
        place
        for module in _wrapped(model)
        for place in module._esper
        if modules.get(place.site.modules[-1]) is module and all(name in modules for name in place.site.modules)
    ]
    fed = {place.layer_id for module in _wrapped(model) for place in module._esper.feeds}
    whole = [place.layer_id for place in held if place.kind != "span" or place.layer_id in fed]
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters() if not is_espers(name)}
    return shapes | dict.fromkeys(whole, ())


def _key(one: Stretch) -> str:
    return "own" if one.kind != "span" else "from_" + one.layer_id.split(":")[0].replace(".", "_")
