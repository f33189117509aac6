"""What a caller gives a session, checked before anything is built."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.flags import Flags
from esper.kasmina.host.anchoring import places
from esper.runtime.training.schedulers import Schedulers
from esper.runtime.trying.side_by_side import check_can_fork

NO_BOUNDARY = (
    "Nothing was evaluated in the first {steps} steps ({share:.0%} of planned_steps): no epoch has ended, and "
    "boundary_steps is not set. Nothing can grow until then, or after grow_until. Call session.after_epoch() after "
    "every epoch; for a stream, or epochs as long as that, set GrowthConfig(boundary_steps=...)."
)


def check_flags(model: nn.Module, flags: Flags) -> None:
    """Refuse a model that was not wrapped as its flags say.

    Raises:
        ConfigError: naming a layer that has chunks.
    """
    why = flags.why_off("chunked_architecture")
    chunked = [place.layer_id for place in places(model) if place.state.num_seeds > 1]
    if why is not None and chunked:
        raise ConfigError(
            f"{why} But {chunked[0]!r} has more than one seed: wrap the model with esper.flags.applied(flags, config)."
        )


def check_run(
    model: nn.Module, config: GrowthConfig, planned_steps: Any, *, counts_flops: bool, keeping: Mapping[str, Any]
) -> None:
    """Refuse what does not fit together.

    Args:
        model: that is trained.
        config: how it may grow.
        planned_steps: batches of the run.
        counts_flops: whether FLOPs are counted.
        keeping: further objects with a state, by name; None for one that is not there.

    Raises:
        ConfigError: saying what, and the remedy.
    """
    if config.arms == "side_by_side":
        check_can_fork(model)
    if not isinstance(planned_steps, int) or planned_steps < 1:
        raise ConfigError(f"planned_steps must be a whole number of at least 1, not {planned_steps!r}.")
    if not counts_flops:
        _refuse_flops(config)
    for name, item in keeping.items():
        if item is not None and not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise ConfigError(f"{name} is a {type(item).__name__} without a state_dict. Leave it out, or give it one.")
        if isinstance(item, nn.Module) and config.max_rounds and next(places(item), None) is not None:
            raise ConfigError(
                f"{name} is a {type(item).__name__} with a copy of the wrapped model, which cannot follow it when it "
                "grows. Average its state dict by name instead, or set max_rounds=0."
            )


def boundary_expected(config: GrowthConfig, planned_steps: int, loader: Any) -> tuple[int, ...]:
    """Steps at which a run that has had no boundary is told so, the last time with a warning; none if it needs none.

    A note when the loader has given more batches than an epoch has, or half of the growth window is over where nobody
    knows how many that are; a warning when all of the window is, and an epoch as well.
    """
    if config.boundary_steps is not None or not config.max_rounds:
        return ()
    end = max(2, 1 + math.floor(config.grow_until * planned_steps))
    try:
        first = 1 + len(loader)
    except TypeError:  # none, or one whose length nobody knows
        first = end // 2
        return first, end
    return first, max(first, end)


def together(schedulers: Sequence[Any]) -> Schedulers:
    """Several schedulers as one.

    Raises:
        ConfigError: if one of them cannot be saved, or is stepped with a value.
    """
    for scheduler in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau) or not hasattr(scheduler, "state_dict"):
            raise ConfigError(
                f"One of the schedulers is a {type(scheduler).__name__}. In a list each must have a state_dict and be "
                "stepped without a value."
            )
    return Schedulers(schedulers)


def _refuse_flops(config: GrowthConfig) -> None:
    """Refuse settings that need FLOPs, where they are not counted."""
    if config.compare == "flops":
        raise ConfigError(
            "compare is 'flops', but with flops=False none are counted. Set compare='steps' in GrowthConfig, which "
            "gives an arm as many steps as the run took and is less protection, or leave flops=True."
        )
    if config.max_train_flops is not None:
        raise ConfigError(
            f"max_train_flops is {config.max_train_flops:g}, but with flops=False none are counted. Leave it out, or "
            "leave flops=True."
        )
