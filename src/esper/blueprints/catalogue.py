"""Every blueprint there is, by id: Esper's own families, the controls, and what users register."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from esper.blueprints.affine import Affine
from esper.blueprints.birth import birth_fault
from esper.blueprints.blueprint import LAYOUTS, Blueprint, Ports, Recipe
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.controls import Placebo, RandomChannels, RandomFrozen
from esper.blueprints.conv_bottleneck import ConvBottleneck
from esper.blueprints.deepen import Deepen
from esper.blueprints.depthwise_conv import DepthwiseConv
from esper.blueprints.glu import GLU
from esper.blueprints.low_rank import LowRank
from esper.blueprints.mini_attention import MiniAttention
from esper.blueprints.noop import Noop
from esper.blueprints.norm_affine import NormAffine
from esper.blueprints.sliding_conv import SlidingConv
from esper.blueprints.squeeze_excite import SqueezeExcite
from esper.blueprints.widen import Widen
from esper.contracts.errors import ConfigError, closest

CATALOGUE: dict[str, type[Blueprint]] = {
    Affine.id: Affine,
    BottleneckMLP.id: BottleneckMLP,
    ConvBottleneck.id: ConvBottleneck,
    DepthwiseConv.id: DepthwiseConv,
    GLU.id: GLU,
    LowRank.id: LowRank,
    MiniAttention.id: MiniAttention,
    Noop.id: Noop,
    NormAffine.id: NormAffine,
    SlidingConv.id: SlidingConv,
    SqueezeExcite.id: SqueezeExcite,
}
COLONIES: dict[str, type[Recipe]] = {Widen.id: Widen, Deepen.id: Deepen}
"""What grows in the host's own layers, or behind its blocks, at several of them."""
CONTROLS: dict[str, type[Blueprint]] = {Placebo.id: Placebo, RandomFrozen.id: RandomFrozen}
COLONY_CONTROLS: dict[str, type[Recipe]] = {RandomChannels.id: RandomChannels}
_registered: dict[str, type[Blueprint]] = {}

Kind = TypeVar("Kind", bound=type[Blueprint])


def known_blueprints() -> dict[str, type[Recipe]]:
    """All blueprints that :func:`make_blueprint` finds, by id."""
    return {**CATALOGUE, **COLONIES, **CONTROLS, **COLONY_CONTROLS, **_registered}


def register_blueprint(kind: Kind) -> Kind:
    """Make a blueprint of one's own known under its id, so that configurations, commands and checkpoints may name it.

    Call it, or use it as a decorator, before the model is wrapped and before a run that grew it is loaded. It is known
    to this process only. Defining the same class once more, as notebooks do, replaces it. With its default settings it
    must pass the birth check (:func:`~esper.blueprints.birth.birth_fault`) at six channels of every layout it fits.

    Args:
        kind: the class, a frozen dataclass that derives from ``Blueprint``.

    Returns:
        The class.

    Raises:
        ConfigError: if it does not keep the contract of a blueprint, or its id is taken.
    """
    fault = _fault_of(kind) or _fault_at_birth(kind())
    if fault is not None:
        name = getattr(kind, "__name__", repr(kind))
        raise ConfigError(f"{name} cannot be registered: {fault}.")
    _registered[kind.id] = kind
    return kind


def make_blueprint(blueprint_id: str, settings: Mapping[str, Any]) -> Recipe:
    """Build a blueprint from its id and hyper-parameters.

    Raises:
        ConfigError: if there is no such blueprint, or it has no such hyper-parameter or not with such a value.
    """
    known = known_blueprints()
    if blueprint_id not in known:
        raise ConfigError(f"There is no blueprint {blueprint_id!r}. {closest(blueprint_id, known)}")
    kind = known[blueprint_id]
    names = [field.name for field in dataclasses.fields(kind)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"Blueprint {blueprint_id!r} has no setting {name!r}. {closest(name, names)}")
    return kind(**settings)


def make_lone_blueprint(blueprint_id: str, settings: Mapping[str, Any]) -> Blueprint:
    """As :func:`make_blueprint`, of one that grows beside a single layer.

    Raises:
        ConfigError: also if it is one that only colonies grow.
    """
    blueprint = make_blueprint(blueprint_id, settings)
    if not isinstance(blueprint, Blueprint):
        raise ConfigError(f"Blueprint {blueprint_id!r} grows in several layers at once, and this is a single one.")
    return blueprint


def _fault_of(kind: Any) -> str | None:
    """Why a class cannot be registered, with what to do; None if it can."""
    if not (isinstance(kind, type) and issubclass(kind, Blueprint)):
        return "it is not a class that derives from esper.blueprints.blueprint.Blueprint"
    if "__dataclass_params__" not in vars(kind) or not vars(kind)["__dataclass_params__"].frozen:
        return "it is not a frozen dataclass: put @dataclass(frozen=True) directly above the class"
    if inspect.isabstract(kind):
        return f"it does not define {', '.join(sorted(kind.__abstractmethods__))}"
    for name in ("id", "family"):
        if not isinstance(getattr(kind, name, None), str) or not getattr(kind, name):
            return f'its {name} is not a name: write {name}: ClassVar[str] = "..." in the class'
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        return f"its settings need defaults: {', '.join(required)}"
    changing = [field.name for field in dataclasses.fields(kind) if getattr(kind(), field.name).__hash__ is None]
    if changing:
        return f"its setting {changing[0]!r} can change: take a number, a string or a tuple"
    if not kind.layouts or not kind.layouts <= LAYOUTS:
        return f"its layouts are {set(kind.layouts) or 'empty'}: take some of {', '.join(sorted(LAYOUTS))}"
    if kind.size is not None and type(getattr(kind, kind.size, None)) is not int:
        return f"its size names {kind.size!r}, which is no setting whose default is a whole number"
    known = known_blueprints()
    other = known.get(kind.id)
    if other is not None and (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        return (
            f"the id {kind.id!r} is that of {other.__qualname__}: choose one that is none of {', '.join(sorted(known))}"
        )
    return None


def _fault_at_birth(blueprint: Blueprint) -> str | None:
    tried = [ports for layout in sorted(blueprint.layouts) if not blueprint.misfit(ports := Ports(6, 6, layout))]
    faults = ((ports.layout, birth_fault(blueprint, ports)) for ports in tried)
    return next((f"on {layout}, {fault}" for layout, fault in faults if fault), None)
