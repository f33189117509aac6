"""Every blueprint there is, by id."""

from collections.abc import Mapping
from typing import Any

from esper.blueprints.blueprint import Blueprint
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.controls import Placebo, RandomFrozen
from esper.contracts.errors import ConfigError, closest

CATALOGUE: dict[str, type[Blueprint]] = {BottleneckMLP.id: BottleneckMLP}
CONTROLS: dict[str, type[Blueprint]] = {Placebo.id: Placebo, RandomFrozen.id: RandomFrozen}


def make_blueprint(blueprint_id: str, settings: Mapping[str, Any]) -> Blueprint:
    """Build a blueprint from its id and hyper-parameters.

    Raises:
        ConfigError: if there is no such blueprint, or it has no such hyper-parameter.
    """
    known = CATALOGUE | CONTROLS
    if blueprint_id not in known:
        raise ConfigError(f"There is no blueprint {blueprint_id!r}. {closest(blueprint_id, known)}")
    kind = known[blueprint_id]
    fields = kind.__dataclass_fields__
    for name in settings:
        if name not in fields:
            raise ConfigError(f"Blueprint {blueprint_id!r} has no setting {name!r}. {closest(name, fields)}")
    return kind(**settings)
