"""Giving a wrapped model what a migrated checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from esper.blueprints.catalogue import make_lone_blueprint
from esper.contracts.errors import CheckpointError, ConfigError, closest
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.strategies import FixedRamp
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import growth_config, host_state_dict
from esper.kasmina.places.place import Place
from esper.legacy.files import below
from esper.legacy.fitting import graft_ports
from esper.legacy.saved import SavedBlueprint
from esper.legacy.states import LegacyState
from esper.migration.files import MigratedLayer, read_migrated
from esper.migration.hybrid import place_names


def load(model: nn.Module, directory: str | Path) -> None:
    """Give a wrapped model what a migrated checkpoint holds; a session that is built on it trains and grows on.

    Args:
        model: wrapped by :func:`esper.wrap`, with a place at every layer that has grown or was culled; or a model with
            hybrid layers, from :func:`esper.migration.hybrid.wrap_model`.
        directory: as :func:`migrate` wrote it.

    Raises:
        CheckpointError: if it is missing, damaged, or of another model; nothing was changed then.
        ConfigError: if the model is not wrapped.
    """
    config, tree = growth_config(model), read_migrated(Path(directory))
    names = place_names(model, tree["layers"])
    host = {_renamed(key, names): tensor for key, tensor in tree["host"].items()}
    found = {place.layer_id: place for place in places(model)}
    try:
        _check_host(host_state_dict(model), host)
        changed = {
            _place(found, names[name], layer): layer
            for name, layer in tree["layers"].items()
            if layer["fossil"] is not None or layer["was"] == LegacyState.CULLED.name
        }
        fossils = {place: _fossil(place, layer["fossil"]) for place, layer in changed.items() if layer["fossil"]}
    except ConfigError as error:
        raise CheckpointError(f"{directory} does not fit the model: {error}") from error
    model.load_state_dict(host)
    for place, layer in changed.items():
        if place in fossils:
            _plant(place, fossils[place], layer["params"])
        else:
            place.state.lifecycle.fill_(int(State.CULLED))
            place.state.embargo_epochs.fill_(config.embargo_epochs)


def _check_host(expected: Mapping[str, Tensor], host: Mapping[str, Tensor]) -> None:
    for key in sorted(expected.keys() | host.keys()):
        if key not in host or key not in expected:
            raise ConfigError(f"{key!r} is only in the {'model' if key in expected else 'file'}.")
        if expected[key].shape != host[key].shape:
            raise ConfigError(f"{key!r} is {tuple(expected[key].shape)} in the model, {tuple(host[key].shape)} there.")


def _place(found: Mapping[str, Place], layer_id: str, layer: MigratedLayer) -> Place:
    """The place of an old layer."""
    if layer_id not in found:
        raise ConfigError(
            f"it has grown or was culled at {layer_id!r}, and there is no place. {closest(layer_id, found)}"
        )
    place = found[layer_id]
    if not place.is_dormant or bool(place.state.lifecycle.any()):
        raise ConfigError(f"{layer_id!r} has a life of its own already. Load into a model that was just wrapped.")
    inputs, outputs = layer["ports"][:2]
    if (place.ports.inputs, place.ports.outputs) != (inputs, outputs) or place.site.geometry.adapter != "same":
        raise ConfigError(f"{layer_id!r} connects other widths or positions than the {inputs} and {outputs} there.")
    return place


def _fossil(place: Place, fossil: SavedBlueprint) -> Graft:
    blueprint = make_lone_blueprint(fossil["id"], fossil["settings"])
    ports = graft_ports(blueprint, place.ports._replace(layout=place.layout_for(blueprint)))
    if (misfit := blueprint.misfit(ports)) is not None:
        raise ConfigError(f"{blueprint.id!r} cannot grow at {place.layer_id!r}: {misfit}.")
    seeds, channels = (0, place.state.num_seeds), (0, ports.outputs)
    return Graft(0, seeds, channels, ports, blueprint, FixedRamp())  # of no lifecycle that this run knows


def _plant(place: Place, fossil: Graft, params: dict[str, Tensor]) -> None:
    place.arena.regrow(place.arena.topology() | {"fossils": [[fossil.to_dict()]]})
    place.arena.fossil_bytes(0)[0].copy_(fossil.flatten(params))


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """A key of the bare host in the model that is loaded."""
    for name, layer_id in names.items():
        prefix = below(name)
        if key.startswith(prefix):
            return below(layer_id) + key.removeprefix(prefix)
    return key
