"""How a run may grow. One frozen dataclass, checked where it is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from esper.contracts.errors import ConfigError


@dataclass(frozen=True)
class GrowthConfig:
    """Where, when and how much a model may grow, and what a graft must prove.

    Fractions are of the run's planned steps unless said otherwise.

    Args:
        layers: places that carry seeds: fnmatch patterns on dotted module names, ``"first:last"`` for a span, ``""``
            for the whole model; a mapping also gives the number of seeds per place. None chooses by itself: layers,
            blocks, halves of chains, the whole model.
        exclude: places that carry no seeds, whoever chose them: patterns on their names as in ``layers``, spans and the
            whole model (``""``) among them. Places that contain an excluded module stay; exclude those too, if a graft
            shall not run beside them either.
        seeds_per_layer: seeds of each layer, capped at its channels. Blocks, spans and the model have one.
        axis: channel axis (1 or -1) of places whose modules do not tell, by pattern.
        output_fields: which field of a mapping or dataclass output grafts write, by pattern; else the first tensor.
        telemetry_rows: vectors of channels that each place looks at in one of eight training forward passes; 0 senses
            nothing.
        blueprints: what may grow, by id; of those that fit a place one is chosen by ``selection``.
        selection: what a blueprint is chosen for: performance, stability, accuracy, risk, novelty, size or cost.
        strategy: how grafts are blended in; None chooses by conditions.
        objective: of training in isolation, before a graft is blended in.
        incubation_fraction: length of that training.
        trial: ``"round"`` tries every candidate in an arm of its own; ``"live"`` grows in the run itself and trains the
            twin afterwards.
        judge: of live trials: ``"twin"``, or ``"ablation"`` where not even one more copy of the training state fits
            into memory, which is a weaker guarantee.
        max_rounds: rounds of candidates in a run; 0 never grows.
        max_candidates: candidates of one round.
        max_active_seeds: lifecycles that may be under way at once, from GERMINATED to EVALUATING.
        capacity_per_round: multiply-adds of a graft relative to the host's.
        max_growth: bound on all grown parameters, relative to the host's.
        max_memory: bound on the bytes of all grafts with their optimizer state, relative to the host's with its own.
        max_latency: bound on the multiply-adds of all grafts in a forward pass, relative to the host's.
        max_train_flops: bound on the training FLOPs of the whole run, with arms, judging and all that is adopted,
            relative to the same run without growth: 1.3 is at most 30 % more. Few candidates are tried then, or small
            ones, or none, so that even the worst case keeps it; with ``trial="live"`` the twin counts for all that is
            left of the run. Batches are taken to be of one size. What emergencies measure comes on top, what a frozen
            host's backward pass then takes, and part of ``depthwise_conv``: torch counts the gradient of its weights as
            if they were dense.
        min_confidence: least confidence level (0 to 3) of a blueprint that may grow.
        max_failures: a place at which so many lifecycles failed one after the other grows no more.
        grow_after: no germination before this fraction.
        grow_at: germinate at this fraction even if training has not stalled.
        grow_until: no germination after this fraction.
        patience: epochs that the held-out loss may stall before a round begins.
        min_delta: relative improvement of the held-out loss per epoch below which it counts as stalled.
        target_metric: no growth once the held-out metric has reached this; None is never reached.
        round_fraction: length of the twin's window, and of GRAFTING in a live trial.
        compare: ``"flops"`` gives a candidate as many steps as the twin's FLOPs pay for, ``"steps"`` as many as the
            twin took, which is little protection: then even random features win now and then.
        choice: ``"first"`` adopts the first candidate that beats the twin, by the order in which they are offered, and
            tries no more; nor does it once two had no lower loss than the twin. ``"best"`` trains all arms and adopts
            the one with the least held-out loss.
        arms: of a round: ``"in_turn"``, or ``"side_by_side"``, each in a process of its own with one thread of torch,
            as many at once as there are cores. That is for models on the CPU only, where the system can fork
            processes and no GPU is visible. All arms are then trained, whatever ``choice`` is, and there are no
            checkpoints within an arm. The run waits for them meanwhile. What is adopted is the same as in turn, to the
            byte where torch has one thread there too.
        ramp_fraction: length of the rise of alpha.
        hold_fraction: share of an arm for which the graft is frozen before it is judged, at most 0.1.
        drift_threshold: ``drift_controlled`` pauses while host weights are further than this from their average,
            relative to its norm.
        gate_z: paired z-score that the grow and keep gates ask for.
        keep_looks: when a graft in FINE_TUNING may be judged again, at most three.
        freeze: ``"decayed"`` keeps a graft training until the learning rate has decayed, ``"at_once"`` freezes it at
            its keep gate.
        graft_lr: the grafts' learning rate relative to the host's. None takes 1.5 behind optimizers of the Adam family,
            and what gives a peak of 0.001 behind others, whose rates mean something else; times the family's own rate,
            which is 0.5 for convolutions.
        peak_lr: the schedule's peak. None takes the largest rate seen; name it where a run goes on with a trained model
            at a small rate, or its grafts train at that rate too.
        rewarm: share of the peak to which the host's learning rate is lifted while a graft trains that was born where
            the rate was below 10 % of the peak; it joins the grafts' decay at the end. None leaves it to the scheduler.
        graft_weight_decay: decoupled weight decay of live grafts.
        embargo_epochs: epochs for which a culled seed may not germinate again.
        quarantine_epochs: epochs for which a seed that was rolled back may not.
        timeout: a seed that stays in one state between GERMINATED and EVALUATING for longer is culled.
        patience_after_cull: epochs that held-out loss has to recover after a graft was removed, before the run goes
            back to where it was before that graft.
        emergency_rollback_threshold: relative rise of the held-out loss that is an emergency while a graft is live, and
            that counts as not recovered after one was removed.
        spike_z: robust z-score above which a training loss is a spike.
        emergency_patience: steps in a row that must spike, or be non-finite, to be an emergency.
        boundary_steps: decide every so many steps instead of at every epoch, for runs without epochs.
        seed: seeds the grafts' own random streams and the split of the held-out samples. The global random state is
            never touched.
    """

    layers: Sequence[str] | Mapping[str, int] | None = None
    exclude: Sequence[str] = ()
    seeds_per_layer: int = 64
    axis: Mapping[str, int] | None = None
    output_fields: Mapping[str, str] | None = None
    telemetry_rows: int = 24
    blueprints: Sequence[str] = ("conv_bottleneck", "sliding_conv", "bottleneck_mlp")
    selection: str = "performance"
    strategy: str | None = None
    objective: Literal["none", "pseudo_residual", "reconstruction"] = "none"
    incubation_fraction: float = 0.02
    trial: Literal["round", "live"] = "round"
    judge: Literal["twin", "ablation"] = "twin"
    max_rounds: int = 2
    max_candidates: int = 4
    max_active_seeds: int = 8
    capacity_per_round: float = 1.0
    max_growth: float = 1.5
    max_memory: float | None = None
    max_latency: float | None = None
    max_train_flops: float | None = None
    min_confidence: int = 0
    max_failures: int = 3
    grow_after: float = 0.05
    grow_at: float = 0.10
    grow_until: float = 0.40
    patience: int = 3
    min_delta: float = 0.01
    target_metric: float | None = None
    round_fraction: float = 0.10
    compare: Literal["flops", "steps"] = "flops"
    choice: Literal["first", "best"] = "first"
    arms: Literal["in_turn", "side_by_side"] = "in_turn"
    ramp_fraction: float = 0.015
    hold_fraction: float = 0.05
    drift_threshold: float = 0.12
    gate_z: float = 2.33
    keep_looks: Sequence[float] = (0.60, 0.75, 0.90)
    freeze: Literal["decayed", "at_once"] = "decayed"
    graft_lr: float | None = None
    peak_lr: float | None = None
    rewarm: float | None = None
    graft_weight_decay: float = 0.01
    embargo_epochs: int = 5
    quarantine_epochs: int = 10
    timeout: float = 0.5
    patience_after_cull: int = 3
    emergency_rollback_threshold: float = 0.05
    spike_z: float = 10.0
    emergency_patience: int = 3
    boundary_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_1 = ("seeds_per_layer", "max_candidates", "max_active_seeds", "max_failures", "patience")
        for name in (*at_least_1, "patience_after_cull", "emergency_patience"):
            self._check(name, self._is_whole(name) and getattr(self, name) >= 1, "a whole number >= 1")
        for name in ("max_rounds", "embargo_epochs", "quarantine_epochs", "telemetry_rows"):
            self._check(name, self._is_whole(name) and getattr(self, name) >= 0, "a whole number >= 0")
        shares = ("grow_after", "grow_at", "grow_until", "round_fraction", "ramp_fraction", "incubation_fraction")
        for name in (*shares, "timeout"):
            self._check(name, self._is_number(name) and 0 < getattr(self, name) <= 1, "in (0, 1]")
        for name in ("capacity_per_round", "max_growth", "gate_z", "drift_threshold", "spike_z"):
            self._check(name, self._is_number(name) and getattr(self, name) > 0, "above 0")
        for name in ("graft_lr", "peak_lr", "max_memory", "max_latency"):
            value = getattr(self, name)
            self._check(name, value is None or (self._is_number(name) and value > 0), "above 0, or None")
        rewarm = self.rewarm
        is_right = rewarm is None or (self._is_number("rewarm") and 0 < rewarm <= 1)
        self._check("rewarm", is_right, "in (0, 1], or None")
        bound = self.max_train_flops
        is_right = bound is None or (self._is_number("max_train_flops") and bound > 1)
        self._check("max_train_flops", is_right, "above 1, or None")
        if bound is not None and self.objective != "none":
            raise ConfigError(
                f"max_train_flops {bound:g} cannot be kept with objective {self.objective!r}: what training in "
                "isolation will cost is not known beforehand. Leave one of them out."
            )
        for name in ("min_delta", "graft_weight_decay", "emergency_rollback_threshold"):
            self._check(name, self._is_number(name) and getattr(self, name) >= 0, "at least 0")
        target = self.target_metric
        self._check("target_metric", target is None or self._is_number("target_metric"), "a number, or None")
        boundary = self.boundary_steps
        is_right = boundary is None or (self._is_whole("boundary_steps") and boundary >= 1)
        self._check("boundary_steps", is_right, "a whole number >= 1, or None")
        self._check("seed", self._is_whole("seed"), "a whole number")
        self._check("min_confidence", self._is_whole("min_confidence") and 0 <= self.min_confidence <= 3, "0 to 3")
        self._check("hold_fraction", self._is_number("hold_fraction") and 0 < self.hold_fraction <= 0.1, "in (0, 0.1]")
        self._check("grow_at", self.grow_after <= self.grow_at <= self.grow_until, "between grow_after and grow_until")
        for name, hint in get_type_hints(GrowthConfig).items():
            if get_origin(hint) is Literal:
                wanted = " or ".join(map(repr, get_args(hint)))
                self._check(name, getattr(self, name) in get_args(hint), wanted)
        self._check("selection", isinstance(self.selection, str), "the name of a selection strategy")
        self._check("strategy", self.strategy is None or isinstance(self.strategy, str), "an id, or None")
        looks = self.keep_looks
        is_list = isinstance(looks, Sequence) and all(isinstance(look, int | float) for look in looks)
        self._check("keep_looks", is_list and 1 <= len(looks) <= 3, "one to three fractions")
        self._check("keep_looks", list(looks) == sorted(set(looks)), "rising fractions")
        self._check("keep_looks", all(0 < look <= 1 for look in looks), "fractions in (0, 1]")
        self._check("blueprints", _is_list_of_names(self.blueprints) and len(self.blueprints) > 0, "a list of ids")
        is_right = self.layers is None or isinstance(self.layers, Mapping) or _is_list_of_names(self.layers)
        self._check("layers", is_right, "a list of patterns, a mapping from patterns to numbers of seeds, or None")
        self._check("exclude", _is_list_of_names(self.exclude), "a list of patterns")
        axes = self.axis
        is_right = axes is None or (isinstance(axes, Mapping) and all(axis in (1, -1) for axis in axes.values()))
        self._check("axis", is_right, "a mapping from patterns to 1 or -1, or None")
        names = self.output_fields
        is_right = names is None or (isinstance(names, Mapping) and _is_list_of_names(list(names.values())))
        self._check("output_fields", is_right, "a mapping from patterns to names of fields, or None")

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
