"""A Lightning Trainer with and without GrowthCallback."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.trainers.clock import Clock
from benchmarks.trainers.model import SAVED, STEPS, Script, digest, host, samples, size, wrapped
from esper.integrations.lightning import GrowthCallback


class Module(pl.LightningModule):
    """A language model.

    Args:
        kind: ``"plain"``, or whether its seeds sleep or grow.
        checkpointing: whether activations are computed again in the backward pass.
    """

    def __init__(self, kind: str, *, checkpointing: bool) -> None:
        super().__init__()
        self.net: Any = host() if kind == "plain" else wrapped(grows=kind == "growing")
        if checkpointing:
            self.net.gradient_checkpointing_enable()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(**batch).loss
        return loss

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Timed(pl.Callback):
    """Starts and stops a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self._clock.tick()


class Cutting(pl.Callback):
    """Ends a run in the middle, with a checkpoint.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == SAVED:
            trainer.save_checkpoint(self._path)
            raise CutError


class CutError(Exception):
    """A run has come to its middle."""


def fitted(
    folder: Path, kind: str, steps: int, *callbacks: Any, checkpointing: bool, path: Any = None
) -> tuple[Module, Any]:
    """A module after a run, and the callback by which it grew."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(kind, checkpointing=checkpointing)
    growth = None if kind == "plain" else GrowthCallback(policy=Script(), planned_steps=STEPS)
    torch.manual_seed(1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_steps=steps,
        devices=1,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=1000,
        default_root_dir=folder,
        enable_checkpointing=False,
        callbacks=[one for one in (growth, *callbacks) if one is not None],
        **quiet,
    )
    train = DataLoader(samples(size().batch * STEPS, 1), size().batch, shuffle=True)
    held_out = DataLoader(samples(size().held_out, 2), size().batch)
    trainer.fit(module, train, held_out, ckpt_path=path)
    return module, growth


def step_seconds(folder: Path, kind: str, steps: int, *, checkpointing: bool) -> float:
    """Of a run, per update."""
    clock = Clock()
    fitted(folder, kind, steps, Timed(clock), checkpointing=checkpointing)
    return clock.seconds


def bytes_of(folder: Path, kind: str, steps: int, *, checkpointing: bool) -> str:
    """Of the host, after a run."""
    module, _ = fitted(folder, kind, steps, checkpointing=checkpointing)
    return digest(module.net.state_dict().items(), with_grafts=False)


def grown(folder: Path, *, is_cut: bool, checkpointing: bool = False) -> dict[str, Any]:
    """A run in which something grows; one that is cut ends in the middle, and another Trainer goes on."""
    path = folder / "cut.ckpt" if is_cut else None
    if path is not None:
        with suppress(CutError):
            fitted(folder, "growing", STEPS, Cutting(path), checkpointing=checkpointing)
    module, growth = fitted(folder, "growing", STEPS, checkpointing=checkpointing, path=path)
    ended = [event for event in growth.session.events if event["event"] == "round_ended"]
    return {
        "rounds": [event["reason"] for event in ended],
        "outcomes": [report.outcome for report in growth.session.field_reports],
        "digest": digest(module.net.named_parameters(), with_grafts=True),
        "memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
