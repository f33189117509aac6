"""Several ranks that fit a Lightning module together: what each of them saves beside the Trainer's checkpoints."""

import os
from glob import escape
from typing import Any
from uuid import uuid4

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from esper.contracts.errors import CheckpointError, ConfigError
from esper.kasmina.host.anchoring import is_espers
from esper.kasmina.host.layer import KasminaLayer

RANKS = "ranks"
"""In the state of growth: how many ranks have saved it, and the word by which a checkpoint names their files."""


LEFT_OUT = "_ddp_params_and_buffers_to_ignore"
"""What ``DistributedDataParallel`` asks a module for."""


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies with which no module grows.

    Raises:
        ConfigError: naming those with which one does.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy) and type(strategy) is not DDPStrategy:
        raise ConfigError(
            f"The Trainer's strategy is {type(strategy).__name__}: with GrowthCallback each process trains a whole "
            "module on a device of its own. Use Trainer(devices=1), or strategy='ddp' for several."
        )
    if type(strategy) is DDPStrategy and strategy._ddp_comm_state is not None:
        raise ConfigError(
            "The strategy's ddp_comm_state is set, by which gradients are averaged now and then: ranks have different "
            "parameters in between, and could not decide together. Leave it out."
        )


def leave_to_esper(module: LightningModule) -> None:
    """Let ``DistributedDataParallel`` around a module leave out what grows in a network within it."""
    if isinstance(module, KasminaLayer):  # it does by itself
        return
    held = (*module.named_parameters(), *module.named_buffers())
    own = [one for one in vars(module).get(LEFT_OUT, []) if not is_espers(one)]
    vars(module)[LEFT_OUT] = [*own, *(name for name, _ in held if is_espers(name))]


class RankFiles:
    """Files beside a checkpoint, in which all ranks but the first keep what each has of its own.

    They are written before the checkpoint, which names them by a word: whenever a rank is killed, what lies there as a
    checkpoint belongs to the files that it names.

    Args:
        strategy: saves and removes checkpoints.
        key: of the state of growth in a checkpoint.
    """

    def __init__(self, strategy: Strategy, key: str) -> None:
        self._strategy, self._key, self._rank = strategy, key, strategy.global_rank  # type: ignore[attr-defined]
        self._save, self._remove = strategy.save_checkpoint, strategy.remove_checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """As the strategy's own; every rank calls it."""
        strategy, mine, word = self._strategy, checkpoint.get("callbacks", {}).get(self._key), None
        if mine is not None:
            word = strategy.broadcast(uuid4().hex[:8])
            mine[RANKS] = {"size": strategy.world_size, "word": word}  # type: ignore[attr-defined]
            if self._rank:
                strategy.checkpoint_io.save_checkpoint(mine, _file(filepath, self._rank, word))
            strategy.barrier()
        self._save(checkpoint, filepath, storage_options=storage_options)
        strategy.barrier()
        self._remove_but(filepath, word)

    def remove_checkpoint(self, filepath: Any) -> None:
        """As the strategy's own; every rank calls it."""
        self._remove(filepath)
        self._remove_but(filepath, None)

    def _remove_but(self, filepath: Any, word: str | None) -> None:
        if self._rank:
            files = get_filesystem(filepath)
            for path in files.glob(_file(escape(str(filepath)), self._rank, "*")):
                if word is None or not path.endswith(word):
                    files.rm(path)


def of_this_rank(trainer: Trainer, saved: dict[str, Any]) -> dict[str, Any]:
    """What this rank has saved of its own with a checkpoint.

    Args:
        trainer: that goes on from the checkpoint.
        saved: the state of growth in it, which is the first rank's.

    Raises:
        CheckpointError: if other ranks have written it, or this rank's file is missing.
    """
    strategy, ranks = trainer.strategy, saved.get(RANKS, {"size": 1})
    if ranks["size"] != trainer.world_size:
        raise CheckpointError(
            f"The checkpoint was written by {ranks['size']} processes, and {trainer.world_size} would go on. Start as "
            "many again, or begin a new run with its weights."
        )
    if strategy.global_rank == 0:  # type: ignore[attr-defined]
        return saved
    where = str(trainer.ckpt_path)
    path = _file(where if "://" in where else os.path.realpath(where), strategy.global_rank, ranks["word"])  # type: ignore[attr-defined]
    if not get_filesystem(path).exists(path):
        raise CheckpointError(
            f"{path} is missing, which this rank has saved with the checkpoint. Copy a checkpoint with all files "
            "beside it whose names begin alike, to where every rank can read them."
        )
    found: dict[str, Any] = strategy.checkpoint_io.load_checkpoint(path, weights_only=True)
    return found


def _file(filepath: Any, rank: int, word: str) -> str:
    return f"{filepath}.rank{rank}-{word}"
