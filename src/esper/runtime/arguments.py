"""What a caller gives a session, checked before anything is built."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.flags import Flags
from esper.kasmina.host.anchoring import is_espers, places
from esper.runtime.training.ranks import Ranks
from esper.runtime.training.schedulers import Schedulers
from esper.runtime.trying.side_by_side import check_can_fork

NO_BOUNDARY = (
    "Nothing was evaluated in the first {steps} steps ({share:.0%} of planned_steps): no epoch has ended, and "
    "boundary_steps is not set. Nothing can grow until then, or after grow_until. Call session.after_epoch() after "
    "every epoch; for a stream, or epochs as long as that, set GrowthConfig(boundary_steps=...)."
)


_WITHOUT_STATE = (
    "Leave it out, or give it one.",
    "Leave it out: a run then resumes where an epoch begins. esper.BatchLoader and torchdata's StatefulDataLoader have "
    "one.",
)

CALLED = {
    "loss": "a function of the model and a batch that gives a scalar tensor",
    "train_step": "a function of a batch that makes a whole step and gives its loss",
    "evaluate": "a function of the model that gives an esper.Evaluation",
}
"""What a caller's functions must be."""


def inner_of(model: nn.Module) -> nn.Module:
    """What ``DistributedDataParallel`` holds; any other model as it is.

    Raises:
        ConfigError: if it was built before the model was given seeds.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return model
    inner: nn.Module = model.module
    left_out = set(model.parameters_to_ignore)
    if any(name not in left_out for name, _ in inner.named_parameters() if is_espers(name)):
        raise ConfigError(
            "DistributedDataParallel was built before esper.wrap, or around more than the wrapped model, so that it "
            "waits for gradients of grafts that are not there. Wrap first: DistributedDataParallel(esper.wrap(model))."
        )
    return inner


def check_functions(**given: Any) -> None:
    """Refuse what cannot be called; None is left for others to judge, but as ``evaluate``.

    Raises:
        ConfigError: naming the argument and what it must be.
    """
    for name, function in given.items():
        if not callable(function) and (function is not None or name == "evaluate"):
            raise ConfigError(f"{name} must be {CALLED[name]}, not {function!r:.80}.")


def check_parts(extra: Any, policy: Any, flags: Any, checkpoint_steps: Any, directory: Any) -> None:
    """Refuse further arguments that are none of what they must be.

    Raises:
        ConfigError: naming the argument and what it must be.
    """
    if extra is not None and not (isinstance(extra, Mapping) and all(isinstance(name, str) for name in extra)):
        raise ConfigError(f"extra must be a mapping from names to objects with a state_dict, not {extra!r:.80}.")
    if policy is not None and (isinstance(policy, type) or not callable(getattr(policy, "decide", None))):
        raise ConfigError(f"policy must be an object with a method decide(observation), not {policy!r:.80}.")
    if flags is not None and not isinstance(flags, Flags):
        raise ConfigError(f"flags must be what esper.flags.resolve gives, not {flags!r:.80}.")
    if checkpoint_steps is not None and (type(checkpoint_steps) is not int or checkpoint_steps < 1):
        raise ConfigError(f"checkpoint_steps must be a whole number of at least 1, or None, not {checkpoint_steps!r}.")
    if checkpoint_steps is not None and directory is None:
        raise ConfigError("checkpoint_steps needs a directory to write to: Session(directory=...).")


def check_ranks(ranks: Ranks, config: GrowthConfig, held_out: Any, *, is_parallel: bool) -> None:
    """Refuse what several ranks cannot do.

    Args:
        ranks: all of them.
        config: of the model.
        held_out: how they evaluate.
        is_parallel: whether they train one model together.

    Raises:
        ConfigError: naming it.
    """
    if held_out not in ("same", "shards"):
        raise ConfigError(f"held_out must be 'same' or 'shards', not {held_out!r:.80}.")
    if held_out == "shards" and not ranks.are_several:
        raise ConfigError("held_out='shards' is for several ranks, of which each evaluates samples of its own.")
    if config.arms == "devices":
        _check_arm_ranks(ranks, held_out, is_parallel=is_parallel)
    if ranks.are_several and config.arms == "side_by_side":
        raise ConfigError(
            "arms='side_by_side' forks this process, which several ranks cannot do. Leave arms='in_turn'."
        )


def _check_arm_ranks(ranks: Ranks, held_out: Any, *, is_parallel: bool) -> None:
    """Refuse to run arms on other ranks where there are none, or they have something else to do."""
    if not ranks.are_several:
        raise ConfigError(
            "arms='devices' runs arms on other ranks, and there are none. Start the script by torchrun "
            "--nproc-per-node=2 (or more) and call torch.distributed.init_process_group, or leave arms='in_turn'."
        )
    if is_parallel or held_out != "same":
        raise ConfigError(
            "arms='devices' is for a run that trains in one process, on rank 0; the others run its arms. Hand Session "
            "the model itself and leave held_out='same', or train on all ranks with arms='in_turn'."
        )


def check_sharded(mesh: Any, scaler: Any) -> None:
    """Refuse what parameters that are spread over ranks do not go with.

    Args:
        mesh: over which they are spread; None where they are not.
        scaler: the gradient scaler.

    Raises:
        ConfigError: naming it.
    """
    if mesh is not None and scaler is not None:
        raise ConfigError(
            "scaler cannot be used with fully_shard: torch's takes no whole gradients of grafts beside sharded ones. "
            "Train with MixedPrecisionPolicy(param_dtype=torch.bfloat16), which needs none."
        )


def listeners(on_event: Any) -> list[Any]:
    """One listener or several, as a list.

    Raises:
        ConfigError: if one cannot be called.
    """
    several = [on_event] if callable(on_event) or not isinstance(on_event, Iterable) else list(on_event)
    for one in several:
        if one is not None and not callable(one):
            raise ConfigError(f"A listener must be a function that is called with every event, not {one!r:.80}.")
    return [one for one in several if one is not None]


def path_of(path: Any, name: str) -> Path:
    """A path that a caller gave.

    Raises:
        ConfigError: if it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{name} must be the path of a directory, not {path!r:.80}.")
    return Path(path)


def directory_of(path: Any, name: str) -> Path:
    """The path of a directory, which need not be there yet.

    Raises:
        ConfigError: if it is no path, or there is a file in its place.
    """
    found = path_of(path, name)
    taken = next((one for one in (found, *found.parents) if one.is_file()), None)
    if taken is not None:
        raise ConfigError(f"{name} is {str(found)!r}, but {str(taken)!r} is a file. Name a directory.")
    return found


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
    if type(planned_steps) is not int or planned_steps < 1:
        raise ConfigError(f"planned_steps must be a whole number of at least 1, not {planned_steps!r}.")
    if not counts_flops:
        _refuse_flops(config)
    for name, item in keeping.items():
        if item is not None and not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise ConfigError(
                f"{name} is a {type(item).__name__} without a state_dict. {_WITHOUT_STATE[name == 'loader']}"
            )
        if name == "loader" and not getattr(item, "use_stateful_dataloader", True):
            raise ConfigError(
                "loader was prepared by Accelerate without a state: give Accelerator dataloader_config="
                "DataLoaderConfiguration(use_stateful_dataloader=True), or leave loader out."
            )
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
