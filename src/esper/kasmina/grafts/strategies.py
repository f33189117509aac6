"""How fast a graft is blended in: the grafting strategies.

Legend: G grafts that one strategy blends in at a place, M what it remembers of each, W sampled weights of the host.

Alpha is ``progress / ramp_steps``, and a strategy gives only the *speed* of that clock: 0 pauses it, 1 is nominal, 2
the bound. So whatever a strategy does, alpha rises monotonically, by bounded steps, and goes on where it paused. What
it remembers is a row of a buffer and thus part of every checkpoint.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from esper.contracts.errors import ConfigError, closest
from esper.contracts.settings.places import PlaceSettings

MAX_SPEED = 2.0
MAX_WEIGHTS = 1024
Kind = TypeVar("Kind", bound="type[GraftStrategy]")
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class GraftSignals:
    """What a strategy may look at in a training step; float32 tensors on the place's device.

    Args:
        loss: scalar, the training loss of the step.
        gradient_norm: scalar, norm of the loss gradient of the host's parameters at the place, as the optimizer got
            it: accumulated, and clipped where the user clips. Negative where the optimizer rested in this step.
        weights: ``[W]``, at most 1024 weights of the host at the place, evenly spaced, after the step.
    """

    loss: Tensor
    gradient_norm: Tensor
    weights: Tensor


@dataclass(frozen=True)
class GraftStrategy(ABC):
    """A way to blend grafts in: a frozen dataclass whose fields are its settings, plain values with defaults.

    Attributes:
        id: name by which commands and configurations mean it.
        memory: how many floats it remembers of each graft; all zero when a ramp begins.
        needs_signals: whether it looks at them; they cost a little.
    """

    id: ClassVar[str]
    memory: ClassVar[int] = 0
    needs_signals: ClassVar[bool] = True

    @classmethod
    def configured(cls, config: PlaceSettings) -> Self:
        """The strategy with the settings that a configuration holds for it; by default there are none."""
        return cls()

    @abstractmethod
    def speed(self, memory_GM: Tensor, signals: GraftSignals) -> tuple[Tensor, Tensor]:
        """Speed of the clock in this step, ``[G]`` in [0, 2], and the new memory ``[G, memory]``.

        It must be pure and must not read from the device. What is not finite is not taken over: a speed counts as 0,
        and memory stays as it was.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class FixedRamp(GraftStrategy):
    """Alpha rises linearly."""

    id: ClassVar[str] = "fixed_ramp"
    needs_signals: ClassVar[bool] = False

    def speed(self, memory_GM: Tensor, signals: GraftSignals) -> tuple[Tensor, Tensor]:
        return memory_GM.new_ones(len(memory_GM)), memory_GM


@dataclass(frozen=True)
class PerformanceLinked(GraftStrategy):
    """Faster while the training loss improves, slower while it worsens.

    The speed is ``1 + (slow - fast) / deviation``, bounded to [0, 2]: two moving averages of the loss, as in the
    oscillators of technical analysis, in units of the mean absolute deviation of the loss from the slow one, so that
    neither the scale of the loss nor its noise matters. Losses that fall steadily give 1.75, losses that rise steadily
    0.25. Averages over the last n steps start as plain means, so that the first steps are nominal.
    """

    id: ClassVar[str] = "performance_linked"
    memory: ClassVar[int] = 4

    FAST_STEPS: ClassVar[int] = 8
    SLOW_STEPS: ClassVar[int] = 32
    LEAST_DEVIATION: ClassVar[float] = 1e-6  # of the loss: what rounding alone can move the averages

    def speed(self, memory_GM: Tensor, signals: GraftSignals) -> tuple[Tensor, Tensor]:
        steps_G, fast_G, slow_G, deviation_G = memory_GM.unbind(1)
        loss, steps_G = signals.loss, steps_G + 1
        slow_rate_G = 1 / steps_G.clamp(max=self.SLOW_STEPS)
        surprise_G = torch.where(steps_G > 1, (loss - slow_G).abs(), 0.0)
        fast_G = fast_G + (loss - fast_G) / steps_G.clamp(max=self.FAST_STEPS)
        slow_G = slow_G + (loss - slow_G) * slow_rate_G
        deviation_G = deviation_G + (surprise_G - deviation_G) * slow_rate_G
        unit_G = deviation_G + self.LEAST_DEVIATION * slow_G.abs() + TINY
        speed_G = 1 + (slow_G - fast_G) / unit_G
        return speed_G, torch.stack([steps_G, fast_G, slow_G, deviation_G], dim=1)


@dataclass(frozen=True)
class DriftControlled(GraftStrategy):
    """Pauses while the host moves under the graft.

    Drift is the distance of the host's weights from their moving average, relative to the average's norm. The average
    keeps moving during a pause: it is the host's coming to rest that ends the pause, not its coming back. With 16 steps
    averaged, an MLP that learns digits by AdamW drifts by 0.07 at most at a rate of 0.001, and beyond 0.12 at a rate of
    0.003 while it learns fastest, from step 20 to 100.

    Args:
        threshold: drift above which the clock stands.
    """

    id: ClassVar[str] = "drift_controlled"
    memory: ClassVar[int] = 1 + MAX_WEIGHTS

    AVERAGED_STEPS: ClassVar[int] = 16
    LEAST_GAP: ClassVar[float] = 1e-8  # weights that are all zero have no norm to compare with

    threshold: float = PlaceSettings.drift_threshold

    @classmethod
    def configured(cls, config: PlaceSettings) -> Self:
        return cls(config.drift_threshold)

    def speed(self, memory_GM: Tensor, signals: GraftSignals) -> tuple[Tensor, Tensor]:
        weights, has_average_G1 = signals.weights, memory_GM[:, :1] > 0
        average_GW = torch.where(has_average_G1, memory_GM[:, 1 : 1 + len(weights)], weights)
        gap_GW = weights - average_GW
        is_still_G = gap_GW.norm(dim=1) <= self.threshold * average_GW.norm(dim=1) + self.LEAST_GAP
        new_GM = memory_GM.clone()
        new_GM[:, 0] = 1
        new_GM[:, 1 : 1 + len(weights)] = average_GW + gap_GW / self.AVERAGED_STEPS
        return is_still_G.float(), new_GM


@dataclass(frozen=True)
class GradNormGated(GraftStrategy):
    """Pauses while the host's gradient at the place is out of the ordinary.

    Ordinary is 0.1 to 10 times the median of the last 32 norms; all finite norms join them, those of a pause too, so
    that a new level becomes ordinary after 16 steps. A step in which the optimizer rested goes on as the one before.
    """

    id: ClassVar[str] = "grad_norm_gated"
    memory: ClassVar[int] = 2 + 32

    LOW: ClassVar[float] = 0.1
    HIGH: ClassVar[float] = 10.0

    def speed(self, memory_GM: Tensor, signals: GraftSignals) -> tuple[Tensor, Tensor]:
        count_G, was_paused_G, ring_GN = memory_GM[:, 0], memory_GM[:, 1], memory_GM[:, 2:]
        norm, size = signals.gradient_norm, ring_GN.shape[1]
        places = torch.arange(size, device=ring_GN.device)
        sorted_GN = torch.where(places < count_G.unsqueeze(1), ring_GN, torch.inf).sort(dim=1).values
        middle_G = ((count_G.clamp(min=1, max=size) - 1) / 2).long()
        median_G = sorted_GN.gather(1, middle_G.unsqueeze(1)).squeeze(1)
        is_ordinary_G = (count_G == 0) | ((norm >= self.LOW * median_G) & (norm <= self.HIGH * median_G))
        is_paused_G = torch.where(norm < 0, was_paused_G, (~(is_ordinary_G & torch.isfinite(norm))).float())
        is_new = torch.isfinite(norm) & (norm >= 0)
        is_here_GN = (places == (count_G % size).unsqueeze(1)) & is_new
        new_GM = torch.cat(
            [(count_G + is_new).unsqueeze(1), is_paused_G.unsqueeze(1), torch.where(is_here_GN, norm, ring_GN)], dim=1
        )
        return 1 - is_paused_G, new_GM


_BUILT_IN: tuple[type[GraftStrategy], ...] = (FixedRamp, PerformanceLinked, DriftControlled, GradNormGated)

STRATEGIES: dict[str, type[GraftStrategy]] = {kind.id: kind for kind in _BUILT_IN}
"""Every strategy there is, by id. The order gives the codes of the state column ``strategy``: it only ever grows."""


def register_strategy(kind: Kind) -> Kind:
    """Make a strategy known under its id; usable as a decorator.

    Registered before a checkpoint is loaded, it is found again by a run that used it.

    Raises:
        ConfigError: if it is no :class:`GraftStrategy` with an id and a size of memory, or the id is taken.
    """
    name = getattr(kind, "__name__", repr(kind))
    if not (isinstance(kind, type) and issubclass(kind, GraftStrategy)):
        raise ConfigError(f"{name} is no grafting strategy. Derive a frozen dataclass from esper's GraftStrategy.")
    strategy_id = getattr(kind, "id", None)
    if not isinstance(strategy_id, str) or not strategy_id:
        raise ConfigError(f"{name} needs an id: a class attribute with the name by which configurations mean it.")
    if type(kind.memory) is not int or kind.memory < 0:
        raise ConfigError(f"{name}: memory must be a whole number of floats of at least 0, not {kind.memory!r}.")
    taken = STRATEGIES.get(strategy_id, kind)
    if taken is not kind:
        raise ConfigError(f"The id {strategy_id!r} is taken by the strategy {taken.__name__}. Choose another.")
    STRATEGIES[strategy_id] = kind
    return kind


def strategy_kind(strategy_id: str) -> type[GraftStrategy]:
    """The strategy of an id.

    Raises:
        ConfigError: if there is none.
    """
    if strategy_id not in STRATEGIES:
        raise ConfigError(f"There is no grafting strategy {strategy_id!r}. {closest(strategy_id, STRATEGIES)}")
    return STRATEGIES[strategy_id]
