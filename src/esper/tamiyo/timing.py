"""When: the conditions under which a run may grow, and what makes it."""

from collections.abc import Sequence

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation

MEMORISED = 0.25
"""Share of the training loss that a run must have lost for :func:`memorises`."""


def may_grow(seen: Observation, config: GrowthConfig) -> bool:
    """Whether a round may begin at all."""
    return obstacle(seen, config) is None


def obstacle(seen: Observation, config: GrowthConfig) -> str | None:
    """Why no round may begin at all; None if one may: in the growth window, with a round and a slot left, below the
    target."""
    share = seen.step / seen.planned_steps
    if seen.rounds_done >= config.max_rounds:
        return f"{seen.rounds_done} rounds are done, and max_rounds is {config.max_rounds}"
    if seen.active >= config.max_active_seeds:
        return f"{seen.active} lifecycles are under way, and max_active_seeds is {config.max_active_seeds}"
    if not config.grow_after <= share <= config.grow_until:
        return f"{share:.1%} of the run is done; it may grow from {config.grow_after:.0%} to {config.grow_until:.0%}"
    if config.target_metric is not None and seen.select_metrics and seen.select_metrics[-1] >= config.target_metric:
        return f"the metric is {seen.select_metrics[-1]:g}, and target_metric is {config.target_metric:g}"
    # a round without the places that lost the last one would be no fair choice
    resting = [place.layer_id for place in seen.places if place.is_under_embargo]
    return f"{len(resting)} places rest, {resting[0]!r} among them" if resting else None


def reason_to_grow(seen: Observation, config: GrowthConfig) -> str | None:
    """Why a round should begin now; None if it may not, or need not yet.

    Training has stalled; or nothing was tried yet and ``grow_at`` has come. A run that does not stall gains more from
    its next steps than from another round.
    """
    if not may_grow(seen, config) or overfits(seen.train_losses, seen.select_losses, config.patience):
        return None
    if has_stalled(seen.select_losses, config.patience, config.min_delta):
        return "the held-out loss has stalled"
    is_first = seen.rounds_done == 0
    return "the growth window is open" if is_first and seen.step / seen.planned_steps >= config.grow_at else None


def has_stalled(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the loss improved by less than ``min_delta`` (relative, per epoch) over the last ``patience`` epochs, or
    its slope has changed and it rises."""
    if len(losses) <= patience:
        return False
    before, now = losses[-1 - patience], losses[-1]
    return before - now < patience * min_delta * abs(before)


def overfits(train_losses: Sequence[float], select_losses: Sequence[float], patience: int) -> bool:
    """Whether over the last ``patience`` epochs training loss fell while held-out loss rose."""
    if min(len(train_losses), len(select_losses)) <= patience:
        return False
    return train_losses[-1] < train_losses[-1 - patience] and select_losses[-1] > select_losses[-1 - patience]


def memorises(train_losses: Sequence[float], select_losses: Sequence[float], boundaries: int) -> bool:
    """Whether over the last ``boundaries`` a run has learned its samples rather than the task.

    Its training loss has fallen by more than a quarter, and its held-out loss has risen all the same. A rise alone also
    happens by chance, where held-out samples are few. Of a training loss that was not positive it cannot be said.
    """
    if boundaries < 1 or not overfits(train_losses, select_losses, boundaries):
        return False
    before, now = train_losses[-1 - boundaries], train_losses[-1]
    return before > 0 and now < (1 - MEMORISED) * before
