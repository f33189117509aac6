"""Bounds on growth."""

from dataclasses import dataclass

from esper.contracts.settings.rules import ABOVE_0, ABOVE_1, CONFIDENCE, WHOLE_FROM_0, WHOLE_FROM_1, or_none, setting


@dataclass(frozen=True)
class BudgetSettings:
    """How much may grow, and what it may cost. Read by the shield and by those who size grafts.

    Args:
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
        max_active_seeds: lifecycles that may be under way at once, from GERMINATED to EVALUATING.
        min_confidence: least confidence level (0 to 3) of a blueprint that may grow.
        max_failures: a place at which so many lifecycles failed one after the other grows no more.
        embargo_epochs: epochs for which a culled seed may not germinate again.
        quarantine_epochs: epochs for which a seed that was rolled back may not.
    """

    capacity_per_round: float = setting(1.0, ABOVE_0)
    max_growth: float = setting(1.5, ABOVE_0)
    max_memory: float | None = setting(None, or_none(ABOVE_0))
    max_latency: float | None = setting(None, or_none(ABOVE_0))
    max_train_flops: float | None = setting(None, or_none(ABOVE_1))
    max_active_seeds: int = setting(8, WHOLE_FROM_1)
    min_confidence: int = setting(0, CONFIDENCE)
    max_failures: int = setting(3, WHOLE_FROM_1)
    embargo_epochs: int = setting(5, WHOLE_FROM_0)
    quarantine_epochs: int = setting(10, WHOLE_FROM_0)
