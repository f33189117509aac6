"""How a run may grow. One frozen dataclass, checked where it is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from esper.contracts.errors import ConfigError


@dataclass(frozen=True)
class GrowthConfig:
    """Where, when and how much a model may grow, and what a graft must prove.

    Fractions are of the run's planned steps unless said otherwise.

    Args:
        layers: places that carry seeds: fnmatch patterns on dotted module names, ``"first:last"`` for a span, ``""``
            for the whole model; a mapping also gives the number of seeds per place. None chooses all Linear layers, the
            whole model and halves of every sequential chain.
        seeds_per_layer: seeds of each layer, capped at its channels. Blocks, spans and the model have one.
        blueprints: what may grow, by id; tried on every candidate place.
        max_rounds: rounds of candidates in a run; 0 never grows.
        max_candidates: candidates of one round.
        capacity_per_round: multiply-adds of a graft relative to the host's.
        max_growth: bound on all grown parameters, relative to the host's.
        grow_after: no germination before this fraction.
        grow_at: germinate at this fraction even if training has not stalled.
        grow_until: no germination after this fraction.
        patience: epochs that the held-out loss may stall before a round begins.
        min_delta: relative improvement of the held-out loss per epoch below which it counts as stalled.
        round_fraction: length of the twin's window.
        compare: ``"flops"`` gives a candidate as many steps as the twin's FLOPs pay for, ``"steps"`` as many steps.
        ramp_fraction: length of the rise of alpha.
        hold_fraction: share of an arm for which the graft is frozen before it is judged, at most 0.1.
        gate_z: paired z-score that the grow and keep gates ask for.
        keep_looks: when a graft in FINE_TUNING may be judged again, at most three.
        freeze: ``"decayed"`` keeps a graft training until the learning rate has decayed, ``"at_once"`` freezes it at
            its keep gate.
        graft_lr: the grafts' learning rate relative to the host's. None takes 1.5 behind optimizers of the Adam family,
            and what gives a peak of 0.001 behind others, whose rates mean something else.
        peak_lr: the schedule's peak. None takes the largest rate seen.
        graft_weight_decay: decoupled weight decay of live grafts.
        embargo_epochs: epochs for which a culled seed may not germinate again.
        timeout: a seed that stays in one state between GERMINATED and EVALUATING for longer is culled.
        patience_after_cull: epochs that held-out loss has to recover after a graft was removed, before the run goes
            back to where it was before that graft.
        rollback_threshold: relative rise of the held-out loss that counts as not recovered.
        boundary_steps: decide every so many steps instead of at every epoch, for runs without epochs.
        seed: seeds the grafts' own random streams and the split of the held-out samples. The global random state is
            never touched.
    """

    layers: Sequence[str] | Mapping[str, int] | None = None
    seeds_per_layer: int = 64
    blueprints: Sequence[str] = ("bottleneck_mlp",)
    max_rounds: int = 2
    max_candidates: int = 4
    capacity_per_round: float = 1.0
    max_growth: float = 1.5
    grow_after: float = 0.05
    grow_at: float = 0.10
    grow_until: float = 0.40
    patience: int = 3
    min_delta: float = 0.01
    round_fraction: float = 0.10
    compare: Literal["flops", "steps"] = "flops"
    ramp_fraction: float = 0.015
    hold_fraction: float = 0.05
    gate_z: float = 2.33
    keep_looks: Sequence[float] = (0.60, 0.75, 0.90)
    freeze: Literal["decayed", "at_once"] = "decayed"
    graft_lr: float | None = None
    peak_lr: float | None = None
    graft_weight_decay: float = 0.01
    embargo_epochs: int = 5
    timeout: float = 0.5
    patience_after_cull: int = 3
    rollback_threshold: float = 0.05
    boundary_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds_per_layer", "max_candidates", "patience", "patience_after_cull"):
            self._check(name, self._is_whole(name) and getattr(self, name) >= 1, "a whole number >= 1")
        for name in ("max_rounds", "embargo_epochs"):
            self._check(name, self._is_whole(name) and getattr(self, name) >= 0, "a whole number >= 0")
        for name in ("grow_after", "grow_at", "grow_until", "round_fraction", "ramp_fraction", "timeout"):
            self._check(name, self._is_number(name) and 0 < getattr(self, name) <= 1, "in (0, 1]")
        for name in ("capacity_per_round", "max_growth", "gate_z"):
            self._check(name, self._is_number(name) and getattr(self, name) > 0, "above 0")
        for name in ("graft_lr", "peak_lr"):
            value = getattr(self, name)
            self._check(name, value is None or (self._is_number(name) and value > 0), "above 0, or None")
        for name in ("min_delta", "graft_weight_decay", "rollback_threshold"):
            self._check(name, self._is_number(name) and getattr(self, name) >= 0, "at least 0")
        boundary = self.boundary_steps
        is_right = boundary is None or (self._is_whole("boundary_steps") and boundary >= 1)
        self._check("boundary_steps", is_right, "a whole number >= 1, or None")
        self._check("seed", self._is_whole("seed"), "a whole number")
        self._check("hold_fraction", self._is_number("hold_fraction") and 0 < self.hold_fraction <= 0.1, "in (0, 0.1]")
        self._check("grow_at", self.grow_after <= self.grow_at <= self.grow_until, "between grow_after and grow_until")
        self._check("compare", self.compare in ("flops", "steps"), "'flops' or 'steps'")
        self._check("freeze", self.freeze in ("decayed", "at_once"), "'decayed' or 'at_once'")
        looks = self.keep_looks
        is_list = isinstance(looks, Sequence) and all(isinstance(look, int | float) for look in looks)
        self._check("keep_looks", is_list and 1 <= len(looks) <= 3, "one to three fractions")
        self._check("keep_looks", list(looks) == sorted(set(looks)), "rising fractions")
        self._check("keep_looks", all(0 < look <= 1 for look in looks), "fractions in (0, 1]")
        self._check("blueprints", _is_list_of_names(self.blueprints) and len(self.blueprints) > 0, "a list of ids")
        is_right = self.layers is None or isinstance(self.layers, Mapping) or _is_list_of_names(self.layers)
        self._check("layers", is_right, "a list of patterns, a mapping from patterns to numbers of seeds, or None")

    def _is_number(self, name: str) -> bool:
        return isinstance(getattr(self, name), int | float)

    def _is_whole(self, name: str) -> bool:
        return isinstance(getattr(self, name), int)

    def _check(self, name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise ConfigError(f"{name} must be {wanted}, not {getattr(self, name)!r}.")


def _is_list_of_names(value: object) -> bool:
    """Not a single string, which is a sequence of strings too."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str) for name in value)
