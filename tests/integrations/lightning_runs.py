"""Runs of a Lightning Trainer, each in a process of its own."""

import logging
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what lightning imports
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from esper.integrations.lightning import GrowthCallback

import esper
from tests.integrations.conftest import pass_all
from tests.runtime.toy import BATCH, DATA, Script, growing, timeless
from tests.tree_digest import tree_digest

EPOCHS = 5


class Module(pl.LightningModule):
    """A network within a module that trains a parameter of its own."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(2)] if batch_norm else []
        self.net = nn.Sequential(nn.Linear(4, 2), *norm, nn.ReLU(), nn.Dropout(0.1), nn.Linear(2, 3))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("held_out", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.03)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)]


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": EPOCHS, "accelerator": "cpu", "gradient_clip_val": 0.5, "default_root_dir": folder}
    return pl.Trainer(callbacks=list(callbacks), **quiet | defaults | options)


def data(**options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Held-out samples do not share out evenly among two."""
    batch = options.pop("batch_size", BATCH)
    train, held_out = TensorDataset(DATA.x, DATA.y), TensorDataset(DATA.held_x[:299], DATA.held_y[:299])
    return DataLoader(train, batch, shuffle=True, **options), DataLoader(held_out, 100)


def told(module: Module, growth: GrowthCallback, trainer: pl.Trainer) -> dict[str, Any]:
    """All that a run with growth comes to."""
    session, run = growth.session, growth.session._run
    return {
        "bytes": tree_digest([run.snapshots.body(), dict(module.state_dict())]),
        "clock": tree_digest(run.snapshots.clock()),
        "events": timeless(session.events),
        "counts": (trainer.global_step, trainer.current_epoch, session.step_count),
        "flops": session.train_flops,
        "samples": run.judge.num_samples,
        "outcomes": [report.outcome for report in session.field_reports],
    }


def run(
    folder: Path, whole: bool = False, batch_norm: bool = False, places: tuple[str, ...] = ("",), **options: Any
) -> Any:
    """One in which something grows, from the last checkpoint if there is any.

    Args:
        folder: of its checkpoints.
        whole: whether the module is wrapped, and not the network in it.
        batch_norm: whether the network has one.
        places: where it grows.
        options: of the Trainer.
    """
    pass_all(pytest.MonkeyPatch())
    torch.manual_seed(0)
    module = Module(batch_norm)
    places = tuple(f"net.{one}".rstrip(".") for one in places) if whole else places
    esper.wrap(module if whole else module.net, growing(layers=list(places)), DATA.x[:8])
    growth = GrowthCallback(policy=Script({1: list(places)}), directory=folder / "log")
    saving = ModelCheckpoint(folder / "saved", save_last=True, every_n_train_steps=3, enable_version_counter=False)
    last = folder / "saved" / "last.ckpt"
    random.seed(2 if last.exists() else 1)
    np.random.seed(2 if last.exists() else 1)
    torch.manual_seed(2 if last.exists() else 3 + int(os.environ.get("RANK", "0")))
    trainer = trainer_of(folder, growth, saving, **options)
    trainer.fit(module, *data(), ckpt_path="last" if last.exists() else None)
    return told(module, growth, trainer)


def two(folder: Path) -> Any:
    """By two processes."""
    return run(folder, **TWO)


TWO: dict[str, Any] = {"strategy": "ddp", "devices": 2}


def beside_plain(folder: Path) -> dict[str, Any]:
    """By two processes: without Esper, and with seeds that sleep; then a run in which something grows."""
    found = {}
    for name in ("plain", "dormant"):
        torch.manual_seed(0)
        module, growth = Module(batch_norm=True), GrowthCallback()
        if name == "dormant":
            esper.wrap(module.net, growing(max_rounds=0))
        torch.manual_seed(1)
        callbacks = [growth] if name == "dormant" else []
        trainer = trainer_of(folder, *callbacks, max_epochs=2, enable_checkpointing=False, **TWO)
        trainer.fit(module, *data())
        host = {name: one for name, one in module.state_dict().items() if "_esper" not in name}
        metrics = {name: float(one) for name, one in trainer.callback_metrics.items()}
        found[name] = [tree_digest([host, metrics, torch.get_rng_state()]), trainer.global_step]
    return found | {"grown": two(folder)}
