"""When growth is tried."""

from collections.abc import Sequence
from dataclasses import dataclass

from esper.contracts.settings.rules import (
    AT_LEAST_0,
    ID,
    IDS,
    NUMBER,
    SELECTION,
    SHARE,
    WHOLE_FROM_0,
    WHOLE_FROM_1,
    or_none,
    setting,
)


@dataclass(frozen=True)
class ControllerSettings:
    """When, where and with what a run may grow. Read by Tamiyo.

    Fractions are of the run's planned steps unless said otherwise.

    Args:
        blueprints: what may grow, by id; of those that fit a place one is chosen by ``selection``.
        selection: what a blueprint is chosen for: performance, stability, accuracy, risk, novelty, size or cost.
        strategy: how grafts are blended in; None chooses by conditions.
        max_rounds: rounds of candidates in a run; 0 never grows.
        max_candidates: candidates of one round.
        grow_after: no germination before this fraction.
        grow_at: germinate at this fraction even if training has not stalled.
        grow_until: no germination after this fraction.
        patience: epochs that the held-out loss may stall before a round begins.
        min_delta: relative improvement of the held-out loss per epoch below which it counts as stalled.
        min_targets: targets (samples, or tokens where each is predicted) that the run must learn from for each
            parameter of the model, if growth is to be tried: below, a larger network hardly gains. None takes what was
            measured: 35 where samples are targets; 150 where tokens are, for colonies, and 50 for what runs beside
            single places. 0 always tries.
        target_metric: no growth once the held-out metric has reached this; None is never reached.
        boundary_steps: decide every so many steps instead of at every epoch, for runs without epochs.
    """

    blueprints: Sequence[str] = setting(("widen", "deepen", "conv_bottleneck", "sliding_conv", "bottleneck_mlp"), IDS)
    selection: str = setting("performance", SELECTION)
    strategy: str | None = setting(None, or_none(ID))
    max_rounds: int = setting(2, WHOLE_FROM_0)
    max_candidates: int = setting(4, WHOLE_FROM_1)
    grow_after: float = setting(0.05, SHARE)
    grow_at: float = setting(0.10, SHARE)
    grow_until: float = setting(0.40, SHARE)
    patience: int = setting(3, WHOLE_FROM_1)
    min_delta: float = setting(0.01, AT_LEAST_0)
    min_targets: float | None = setting(None, or_none(AT_LEAST_0))
    target_metric: float | None = setting(None, or_none(NUMBER))
    boundary_steps: int | None = setting(None, or_none(WHOLE_FROM_1))
