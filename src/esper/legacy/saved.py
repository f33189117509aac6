"""What is kept of an old layer beside the bytes of its tensors, and whether that makes sense."""

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from esper.blueprints.blueprint import Blueprint, Ports
from esper.blueprints.catalogue import make_lone_blueprint
from esper.contracts.errors import ConfigError
from esper.legacy.fitting import check_fits, graft_ports
from esper.legacy.states import GROWN, LegacyState


class SavedBlueprint(TypedDict):
    """What a seed grows."""

    id: str
    settings: dict[str, Any]


class SavedLayer(TypedDict):
    """An old layer, as :meth:`LegacyKasminaLayer.to_dict` gives it."""

    state: str
    alpha: float
    step: int
    ramp_steps: int
    ports: list[Any]
    blueprint: SavedBlueprint | None


def blueprint_of(saved: SavedBlueprint | None) -> Blueprint | None:
    """The blueprint that a layer has grown; None if it has grown none.

    Raises:
        ConfigError: if there is no such blueprint, or not with such settings.
    """
    return None if saved is None else make_lone_blueprint(saved["id"], saved["settings"])


def check_layer(layer: SavedLayer, graft: Mapping[str, Tensor]) -> None:
    """Refuse a layer that contradicts itself.

    Raises:
        ConfigError: saying what does.
    """
    if layer["state"] not in LegacyState.__members__:
        raise ConfigError(f"there is no state {layer['state']!r}; the five are {', '.join(LegacyState.__members__)}.")
    state, ramp_steps, step = LegacyState[layer["state"]], layer["ramp_steps"], layer["step"]
    most = {LegacyState.GRAFTING: ramp_steps - 1, LegacyState.FOSSILIZED: ramp_steps}.get(state, 0)
    least = ramp_steps if state is LegacyState.FOSSILIZED else 0
    if ramp_steps < 1 or not least <= step <= most or layer["alpha"] != step / ramp_steps:
        raise ConfigError(f"a {state.name} seed cannot be at alpha {layer['alpha']}, step {step} of {ramp_steps}.")
    blueprint = blueprint_of(layer["blueprint"])
    if (blueprint is not None) != (state in GROWN):
        raise ConfigError(f"a {state.name} seed {'must name its' if state in GROWN else 'can have no'} blueprint.")
    ports = _ports_of(layer["ports"])
    if blueprint is not None:
        check_fits(blueprint, ports)
    wanted = {} if blueprint is None else blueprint.shapes(graft_ports(blueprint, ports))
    shapes = {key: tuple(tensor.shape) for key, tensor in graft.items()}
    if shapes != wanted:
        raise ConfigError(f"its graft has the shapes {shapes}, and should have {wanted}.")


def _ports_of(saved: list[Any]) -> Ports:
    kinds = [type(value) for value in saved]
    if kinds != [int, int, str, int] or min(saved[0], saved[1], saved[3]) < 1:
        raise ConfigError(f"{saved} are no ports.")
    return Ports(*saved)
