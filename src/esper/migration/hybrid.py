"""The old or the new layer, as flags say, behind the calls of the old one.

In the new world seeds change only in a session, so a hybrid layer that is a new one has to be told its session before
it is asked for anything. The old calls warn, and name what to write instead.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.commands import SeedId
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.flags import Flag, Flags
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import growth_config, unwrap, wrap
from esper.kasmina.places.place import Place
from esper.legacy.layer import RAMP, LegacyConfig, LegacyKasminaLayer
from esper.runtime.session import Session

DECIDING = ("chunked_architecture", "extended_lifecycle")
"""Flags that must both be switched on for the new layer."""

PAGE = "docs/migrating.md"


class HybridKasminaLayer(nn.Module):
    """An old layer, or a base layer with the seeds of :func:`esper.wrap`.

    ``HybridKasminaLayer(...)`` makes one of its two subclasses: the new one if the flags ``chunked_architecture`` and
    ``extended_lifecycle`` are both switched on. A flag that is on because nobody set any is not. In the old one all
    weights have the names that :class:`LegacyKasminaLayer` gives them, so that its files load.

    Args:
        base_layer: as of :class:`LegacyKasminaLayer`.
        config: how the seed grows; of it the new layer takes the hyper-parameters of blueprints.
        flags: as they were resolved for the model. None is the old layer.

    Attributes:
        decided_by: the flags that decided, with their reasons.

    Raises:
        ConfigError: if the base layer cannot carry a seed.
    """

    base_layer: nn.Module
    decided_by: tuple[Flag, ...]

    def __new__(cls, base_layer: Any = None, config: Any = None, flags: Flags | None = None) -> "HybridKasminaLayer":
        if cls is not HybridKasminaLayer:  # as a copy is made
            return super().__new__(cls)
        return super().__new__(_Chunked if flags is not None and _are_switched_on(flags) else _Legacy)

    def __init__(self, base_layer: nn.Module, config: LegacyConfig | None = None, flags: Flags | None = None) -> None:
        raise NotImplementedError  # its subclasses have their own

    def _decided(self, flags: Flags | None) -> None:
        self.decided_by = () if flags is None else tuple(flags[name] for name in DECIDING)


class _Legacy(HybridKasminaLayer, LegacyKasminaLayer):
    """The old layer. Its calls warn."""

    def __init__(self, base_layer: nn.Module, config: LegacyConfig | None = None, flags: Flags | None = None) -> None:
        LegacyKasminaLayer.__init__(self, base_layer, config)
        self._decided(flags)

    def request_germination(self, seed_id: int, blueprint_id: str, grafting_strategy: str = RAMP) -> None:
        _tell("request_germination")
        LegacyKasminaLayer.request_germination(self, seed_id, blueprint_id, grafting_strategy)

    def begin_grafting(self, optimizer: Optimizer) -> None:
        _tell("begin_grafting")
        LegacyKasminaLayer.begin_grafting(self, optimizer)

    def advance(self) -> None:
        _tell("advance")
        LegacyKasminaLayer.advance(self)

    def cancel_germination(self, seed_id: int) -> None:
        _tell("cancel_germination")
        LegacyKasminaLayer.cancel_germination(self, seed_id)

    def get_layer_stats(self) -> dict[str, Any]:
        _tell("get_layer_stats")
        return LegacyKasminaLayer.get_layer_stats(self) | _reasons(self)

    def get_health_report(self) -> dict[int, dict[str, Any]]:
        _tell("get_health_report")
        return LegacyKasminaLayer.get_health_report(self)


class _Chunked(HybridKasminaLayer):
    """The new layer behind the old calls."""

    def __init__(self, base_layer: nn.Module, config: LegacyConfig | None = None, flags: Flags | None = None) -> None:
        nn.Module.__init__(self)
        self._decided(flags)
        self.config = config or LegacyConfig()
        self.base_layer = wrap(base_layer, GrowthConfig(layers={"": 1}))
        self._session: Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}  # which is not that of a copy

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output, with all that its seeds have grown."""
        y: Tensor = self.base_layer(x)
        return y

    @property
    def place(self) -> Place:
        """Where its seeds are."""
        return next(places(self.base_layer))

    def attach(self, session: Session) -> None:
        """Tell it the session that its old calls go to.

        Raises:
            ConfigError: if that trains another model.
        """
        if not session.trains(self.place):
            raise ConfigError(
                f"The session does not train this layer ({self.place.layer_id!r}). Build it on the model from "
                "esper.migration.hybrid.wrap_model."
            )
        self._session = session

    def request_germination(self, seed_id: SeedId, blueprint_id: str, grafting_strategy: str = RAMP) -> None:
        """Let a seed grow, as ``session.germinate`` does; that raises for a refusal."""
        _tell("request_germination")
        settings = self.config.blueprints.get(blueprint_id)
        self._attached().germinate(self.place.layer_id, seed_id, blueprint_id, grafting_strategy, settings)

    def begin_grafting(self, optimizer: Optimizer) -> None:
        """The session does that, when a boundary comes."""
        _tell("begin_grafting")

    def advance(self) -> None:
        """The session does that, in every step."""
        _tell("advance")

    def cancel_germination(self, seed_id: SeedId) -> None:
        """Stop what a seed grows, as ``session.cancel`` does; that raises for a refusal."""
        _tell("cancel_germination")
        self._attached().cancel(self.place.layer_id, seed_id)

    def get_layer_stats(self) -> dict[str, Any]:
        """Which layer it is, seeds by state, parameters of the base layer and of all that has grown."""
        _tell("get_layer_stats")
        place = self.place
        names = [State(code).name for code in place.state.lifecycle.tolist()]
        return {
            "architecture": "chunked",
            "seeds": len(names),
            "states": {name: names.count(name) for name in dict.fromkeys(names)},
            "parameters": place.host_parameters,
            "grown_parameters": place.arena.num_parameters,
        } | _reasons(self)

    def get_health_report(self) -> dict[int, dict[str, Any]]:
        """Of every seed: its state, alpha, blueprint, and whether its graft has raised no fault."""
        _tell("get_health_report")
        place, state = self.place, self.place.state
        growing = {seed: graft for graft in place.arena.grafts.values() for seed in range(*graft.seeds)}
        columns = zip(state.lifecycle.tolist(), state.alpha.tolist(), state.fault.tolist(), strict=True)
        return {
            seed: {
                "state": State(code).name,
                "alpha": alpha,
                "blueprint": growing[seed].blueprint.id if seed in growing else None,
                "is_finite": not fault,
            }
            for seed, (code, alpha, fault) in enumerate(columns)
        }

    def _attached(self) -> Session:
        if self._session is None:
            raise TransitionError(
                f"The layer {self.place.layer_id!r} has no session, and seeds grow only in one. Call "
                "attach(session) first."
            )
        return self._session


def wrap_model(model: nn.Module, config: GrowthConfig | None = None, example: Any = None) -> nn.Module:
    """Give a whole model with hybrid layers to :func:`esper.wrap`: one host, with a place at each of these layers.

    Args:
        model: with hybrid layers, all of them new ones. Build its optimizer afterwards.
        config: how it may grow; its ``layers`` are chosen here.
        example: as of :func:`esper.wrap`.

    Returns:
        The same object.

    Raises:
        ConfigError: if there are no hybrid layers, or old ones among them; the model is unchanged then.
    """
    named = {name: layer for name, layer in model.named_modules() if isinstance(layer, HybridKasminaLayer)}
    if not named:
        raise ConfigError("The model has no HybridKasminaLayer. esper.wrap takes it as it is.")
    if old := [name for name, layer in named.items() if isinstance(layer, LegacyKasminaLayer)]:
        raise ConfigError(
            f"{old[0]!r} is an old layer, which no session grows: {' and '.join(DECIDING)} are not both on for it. "
            "Train the model by your own loop."
        )
    alone = [(layer.base_layer, growth_config(layer.base_layer)) for layer in named.values()]
    for base_layer, _ in alone:
        unwrap(base_layer)
    try:
        return wrap(model, replace(config or GrowthConfig(), layers=list(place_names(model, named).values())), example)
    except ConfigError:
        for base_layer, before in alone:
            wrap(base_layer, before)
        raise


def attach(model: nn.Module, session: Session) -> None:
    """Tell all new hybrid layers of a model their session."""
    for layer in model.modules():
        if isinstance(layer, _Chunked):
            layer.attach(session)


def place_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name of the base layer of each layer that is named, which a hybrid layer holds as a child."""
    modules = dict(model.named_modules())
    return {
        name: f"{name}.base_layer".lstrip(".") if isinstance(modules.get(name), HybridKasminaLayer) else name
        for name in names
    }


_INSTEAD = {
    "request_germination": "session.germinate(layer_id, seed_id, blueprint, strategy)",
    "begin_grafting": "nothing: the session blends in what it has judged",
    "advance": "nothing: session.step moves alpha",
    "cancel_germination": "session.cancel(layer_id, seed_id)",
    "get_layer_stats": "esper.summary(model)",
    "get_health_report": "session.events, or esper.summary(model)",
}


def _are_switched_on(flags: Flags) -> bool:
    return all(flags[name].is_switched_on for name in DECIDING)


def _tell(name: str) -> None:
    text = f"{name} is of the old layer. Write instead: {_INSTEAD[name]}. See {PAGE}."
    warnings.warn(text, DeprecationWarning, stacklevel=3)


def _reasons(layer: HybridKasminaLayer) -> dict[str, Any]:
    reasons = {flag.name: flag.reason for flag in layer.decided_by}
    return {"decided_by": reasons or {"flags": "none were given"}}
