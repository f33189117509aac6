"""The old layer: a base layer with one seed, which grows once, by a linear ramp.

The graft is made when the seed germinates, starts as the exact identity, and is trained by the user's optimizer like
any other parameter: :meth:`LegacyKasminaLayer.begin_grafting` hands it over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Optimizer

from esper.blueprints.blueprint import Blueprint
from esper.blueprints.catalogue import make_lone_blueprint
from esper.contracts.errors import ConfigError, TransitionError, closest
from esper.legacy.fitting import check_fits, graft_ports, ports_of
from esper.legacy.saved import SavedLayer, blueprint_of
from esper.legacy.states import LegacyState, check_transition

RAMP = "fixed_ramp"
"""The one grafting strategy of the old layer."""


@dataclass(frozen=True)
class LegacyConfig:
    """How the seed of an old layer grows.

    Args:
        ramp_steps: optimizer steps in which alpha rises from 0 to 1.
        seed: of the random stream that the graft's first bytes come from.
        blueprints: hyper-parameters of blueprints, by id; others have their defaults.

    Raises:
        ConfigError: if a value cannot work, naming it.
    """

    ramp_steps: int = 100
    seed: int = 0
    blueprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.ramp_steps) is not int or self.ramp_steps < 1:
            raise ConfigError(f"ramp_steps must be a whole number of at least 1, not {self.ramp_steps!r}.")
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, not {self.seed!r}.")
        for blueprint_id, settings in self.blueprints.items():
            make_lone_blueprint(blueprint_id, settings)


class LegacyKasminaLayer(nn.Module):
    """A layer with one seed that lives the five states.

    Args:
        base_layer: a linear layer, a convolution, or a module that begins and ends with one of them.
        config: how the seed grows.

    Attributes:
        state: of the seed.
        blueprint: what it grows; None before it germinates, and once it is CULLED.
        graft: the parameters of that.
        step: optimizer steps of the ramp that are done.
        ramp_steps: of the whole ramp.

    Raises:
        ConfigError: if the base layer does not tell what it reads and writes.
    """

    def __init__(self, base_layer: nn.Module, config: LegacyConfig | None = None) -> None:
        super().__init__()
        self.base_layer, self.config = base_layer, config or LegacyConfig()
        self.ports, self._axis = ports_of(base_layer)
        self.state = LegacyState.DORMANT
        self.blueprint: Blueprint | None = None
        self.step, self.ramp_steps = 0, self.config.ramp_steps
        self.graft = nn.ParameterDict()

    @property
    def alpha(self) -> float:
        """Blending factor of the graft, 0 to 1."""
        return self.step / self.ramp_steps

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output and, once it is blended in, alpha times what the graft adds."""
        y: Tensor = self.base_layer(x)
        alpha = self.alpha
        if alpha == 0:
            return y
        assert self.blueprint is not None
        read_last = (x if self.blueprint.reads == "input" else y).movedim(self._axis, -1)
        delta = self.blueprint.delta(dict(self.graft.items()), read_last).movedim(-1, self._axis)
        if delta.shape != y.shape:
            raise ConfigError(
                f"The base layer made {tuple(y.shape)} of {tuple(x.shape)}: a graft needs the same positions at both."
            )
        grown: Tensor = y + alpha * delta
        return grown

    def request_germination(self, seed_id: int, blueprint_id: str, grafting_strategy: str = RAMP) -> None:
        """Make the graft. It is not seen by a forward pass, and not trained, before :meth:`begin_grafting`.

        Args:
            seed_id: 0, the only one.
            blueprint_id: what to grow; one that starts as the identity.
            grafting_strategy: ``"fixed_ramp"``, the only one.

        Raises:
            ConfigError: if there is no such blueprint or strategy, or it does not fit; nothing was changed.
            TransitionError: if the seed is not DORMANT, or there is none of this number.
        """
        _check_seed(seed_id)
        check_transition(self.state, LegacyState.GERMINATING)
        if grafting_strategy != RAMP:
            raise ConfigError(
                f"The old layer has no strategy {grafting_strategy!r}. {closest(grafting_strategy, [RAMP])}"
            )
        blueprint = make_lone_blueprint(blueprint_id, self.config.blueprints.get(blueprint_id, {}))
        check_fits(blueprint, self.ports)
        born = blueprint.init(graft_ports(blueprint, self.ports), torch.Generator().manual_seed(self.config.seed))
        self._regrow(LegacyState.GERMINATING, 0, self.ramp_steps, blueprint)
        with torch.no_grad():
            for name, value in born.items():
                self.graft[name].copy_(value)

    def begin_grafting(self, optimizer: Optimizer) -> None:
        """Let the optimizer train the graft from now on, and alpha rise.

        The graft joins the optimizer's first parameter group, so that its learning rate and its scheduler hold for it.
        After a process that grafted was resumed, build the optimizer over the parameters that it had at first
        (:func:`host_parameters`) and call this again.

        Raises:
            ConfigError: if the optimizer takes no parameters later.
            TransitionError: if the seed is neither GERMINATING nor GRAFTING.
        """
        if isinstance(optimizer, Adagrad | LBFGS):
            raise ConfigError(
                f"{type(optimizer).__name__} takes no parameters once it is built. Use another optimizer."
            )
        if self.state is not LegacyState.GRAFTING:
            check_transition(self.state, LegacyState.GRAFTING)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        optimizer.param_groups[0]["params"].extend(p for p in self.graft.values() if id(p) not in held)
        self.state = LegacyState.GRAFTING

    def advance(self) -> None:
        """Call it after every optimizer step: alpha rises by one step, and at 1 the graft is FOSSILIZED, its bytes
        frozen. In other states it does nothing."""
        if self.state is not LegacyState.GRAFTING:
            return
        self.step += 1
        if self.step == self.ramp_steps:
            self._regrow(LegacyState.FOSSILIZED, self.step, self.ramp_steps, self.blueprint)

    def cancel_germination(self, seed_id: int) -> None:
        """Take the graft out at once: the seed is CULLED, and the layer is its base layer again, for good.

        Raises:
            TransitionError: if there is nothing to take out, or no such seed.
        """
        _check_seed(seed_id)
        check_transition(self.state, LegacyState.CULLED)
        self._regrow(LegacyState.CULLED, 0, self.ramp_steps, None)

    def get_layer_stats(self) -> dict[str, Any]:
        """Which layer it is, seeds by state, parameters of the base layer and of the graft."""
        return {
            "architecture": "legacy",
            "seeds": 1,
            "states": {self.state.name: 1},
            "parameters": sum(parameter.numel() for parameter in self.base_layer.parameters()),
            "grown_parameters": sum(parameter.numel() for parameter in self.graft.values()),
        }

    def get_health_report(self) -> dict[int, dict[str, Any]]:
        """Of every seed: its state, alpha, blueprint, and whether all its parameters are finite."""
        is_finite = all(bool(parameter.isfinite().all()) for parameter in self.graft.values())
        name = None if self.blueprint is None else self.blueprint.id
        return {0: {"state": self.state.name, "alpha": self.alpha, "blueprint": name, "is_finite": is_finite}}

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(self.to_dict()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Rebuild the graft whose bytes are loaded next. torch calls it before the children load."""
        self.take_on(json.loads(bytes(state.tolist())))

    def to_dict(self) -> SavedLayer:
        """All but the bytes, as plain values."""
        blueprint = self.blueprint
        return {
            "state": self.state.name,
            "alpha": self.alpha,
            "step": self.step,
            "ramp_steps": self.ramp_steps,
            "ports": list(self.ports[:4]),
            "blueprint": None if blueprint is None else {"id": blueprint.id, "settings": blueprint.settings},
        }

    def take_on(self, saved: SavedLayer) -> None:
        """Inverse of :meth:`to_dict`; the graft's bytes are undefined until they are loaded.

        Raises:
            ConfigError: if it is of a layer of other widths, or names a blueprint that is not known.
        """
        if tuple(saved["ports"]) != tuple(self.ports[:4]):
            raise ConfigError(
                f"The layer connects {tuple(self.ports[:4])}, and what is loaded {tuple(saved['ports'])}."
            )
        self._regrow(LegacyState[saved["state"]], saved["step"], saved["ramp_steps"], blueprint_of(saved["blueprint"]))

    def _regrow(self, state: LegacyState, step: int, ramp_steps: int, blueprint: Blueprint | None) -> None:
        """Be in a state; parameters that have their shape stay the objects that they are."""
        shapes = {} if blueprint is None else blueprint.shapes(graft_ports(blueprint, self.ports))
        if {name: tuple(parameter.shape) for name, parameter in self.graft.items()} != shapes:
            like = next(self.base_layer.parameters())
            self.graft = nn.ParameterDict({name: like.new_zeros(shape) for name, shape in shapes.items()})
        is_trained = state is not LegacyState.FOSSILIZED and blueprint is not None and blueprint.is_trainable
        for parameter in self.graft.values():
            parameter.requires_grad_(is_trained)
            parameter.grad = parameter.grad if is_trained else None
        self.state, self.step, self.ramp_steps, self.blueprint = state, step, ramp_steps, blueprint


def host_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model without those of grafts of old layers, in their order."""
    grafts = {id(p) for layer in model.modules() if isinstance(layer, LegacyKasminaLayer) for p in layer.graft.values()}
    return [parameter for parameter in model.parameters() if id(parameter) not in grafts]


def _check_seed(seed_id: int) -> None:
    if seed_id != 0:
        raise TransitionError(f"The layer has no seed {seed_id!r}: the old layer has one, seed 0.")
