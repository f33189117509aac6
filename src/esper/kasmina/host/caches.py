"""Caches with which a model decodes token by token: what it has computed of earlier tokens and does not see again.

A graft that mixes tokens keeps nothing between calls. Where the earlier tokens are only in a cache it would see the
last ones alone, and compute something else than in one pass over all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from esper.blueprints.catalogue import make_blueprint
from esper.blueprints.deepen import Deepen
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Layout
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.places.place import Place
from esper.kasmina.places.site import Site

NAMES = ("past_key_values", "past_key_value", "cache_params")
"""Arguments and fields of outputs in which models of transformers pass their cache."""

MIXED: frozenset[Layout] = frozenset({"tokens", "signal"})
"""Layouts along which a graft may see earlier positions."""


def decodes_with_cache(model: nn.Module) -> bool:
    """Whether a model, or one inside it, generates with a cache unless it is told not to."""
    generating = (getattr(module, "config", None) for module in model.modules() if hasattr(module, "generate"))
    return any(getattr(config, "use_cache", False) for config in generating)


def use_none(model: nn.Module) -> str:
    """What tells a model to use no cache, as code: every configuration in it that says to use one is set."""
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            seen.setdefault(id(config), ".".join(filter(None, ("model", name, "config.use_cache"))))
    return " = ".join([*(seen.values() or ["model.config.use_cache"]), "False"])


def has_cache(values: Any) -> bool:
    """Whether there is a cache among keyword arguments, or in an output."""
    return isinstance(values, Mapping) and any(values.get(name) is not None for name in NAMES)


def refuse_mixing_alone(model: nn.Module, sites: Sequence[Site], blueprints: Sequence[str]) -> None:
    """Refuse a model that decodes with a cache where only blueprints that mix tokens may grow.

    Raises:
        ConfigError: naming them and the remedy.
    """
    layouts = frozenset().union(*(make_blueprint(one, {}).layouts for one in blueprints))
    if any(site.uncached for site in sites) and not any(site.ports.layout in layouts for site in sites):
        raise ConfigError(
            "The model decodes with a key-value cache, where a graft that mixes tokens would not see earlier ones, and "
            f"all of blueprints mix tokens: {', '.join(blueprints)}. Set {use_none(model)} before esper.wrap, or add "
            "'bottleneck_mlp' to blueprints."
        )


def refuse_continuation(places: Iterable[Place], kwargs: Mapping[str, Any]) -> None:
    """Refuse to go on from a cache with entries where grafts mix tokens.

    Raises:
        ConfigError: naming the place and the remedy.
    """
    caches = [kwargs[name] for name in NAMES if kwargs.get(name) is not None]
    for place in places if caches else ():
        for graft in (*place.arena.live, *(fossil for group in place.arena.fossils for fossil in group)):
            if mixes_tokens(graft) and any(map(_is_filled, caches)):
                raise ConfigError(
                    f"{place.layer_id!r} has grown a {graft.blueprint.id}, which looks at earlier tokens and would not "
                    "see those that are only in the cache. Generate with use_cache=False."
                )


def not_offered(places: Iterable[Place], blueprints: Sequence[str]) -> list[str]:
    """Blueprints that would fit some place if the model did not decode with a cache."""
    layouts = {place.site.uncached for place in places} - {None}
    kinds = {one: make_blueprint(one, {}).layouts for one in blueprints}
    return [one for one, fitting in kinds.items() if "features" not in fitting and fitting & layouts]


def mixes_tokens(graft: Graft) -> bool:
    """Whether what a graft gives at one token depends on others."""
    mixes = "features" not in graft.blueprint.layouts or isinstance(graft.blueprint, Deepen)
    return mixes and any(part.layout in MIXED for part in graft.parts)


def _is_filled(cache: Any) -> bool:
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return bool(cache)
    try:
        return bool(length())
    except ValueError:  # a cache of recurrent states alone has no length
        return bool(cache.has_previous_state())
