"""Runs of a loop of Accelerate, each in a process of its own."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import esper
from esper.integrations.accelerate import Accumulation, register_session
from tests.integrations.conftest import pass_all
from tests.runtime import toy
from tests.runtime.toy import Script, growing, timeless
from tests.tree_digest import tree_digest

EPOCHS, SAVED_EVERY = 8, 4


def run(folder: Path, precision: str = "no", accumulate: int = 3) -> dict[str, Any]:
    """One in which something grows, from the last checkpoint if there is any.

    Args:
        folder: of its checkpoints.
        precision: of the accelerator.
        accumulate: batches for an update.
    """
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    pass_all(pytest.MonkeyPatch())
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    stateful = DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate, dataloader_config=stateful
    )
    model = esper.wrap(toy.host(dropout=0.2), growing(keep_looks=(0.95,)))
    optimizer = AdamW(model.parameters(), lr=0.03)
    loader = StatefulDataLoader(TensorDataset(toy.DATA.x, toy.DATA.y), 16, shuffle=True)
    planned = EPOCHS * len(loader)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, optimizer, loader, OneCycleLR(optimizer, 0.03, planned)
    )

    def train_step(batch: Any) -> torch.Tensor:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(batch[0]), batch[1])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return loss.detach()

    session = esper.Session(
        model,
        optimizer,
        train_step=train_step,
        evaluate=toy.evaluate,
        planned_steps=planned,
        scheduler=scheduler,
        scaler=accelerator.scaler,
        extra={"accumulation": Accumulation(accelerator)},
        loader=loader,
        policy=Script({1: [""]}),
    )
    register_session(accelerator, session)
    for name in ("saved", "saved.before"):
        if (folder / name).exists():
            torch.rand(5)
            accelerator.load_state(folder / name)
            break
    for _ in range(session.epoch, EPOCHS):
        for batch in loader:
            session.step(batch)
            if session.step_count % SAVED_EVERY == 0 and session.step_count % len(loader):
                saved_whole(accelerator, folder / "saved")
        session.after_epoch()
    session.finish()
    run = session._run
    return {
        "bytes": tree_digest(run.snapshots.body()),
        "clock": tree_digest(run.snapshots.clock()),
        "events": timeless(session.events),
        "flops": session.train_flops,
        "outcomes": [report.outcome for report in session.field_reports],
    }


def saved_whole(accelerator: Accelerator, folder: Path) -> None:
    """Whole or not at all, as the page of Accelerate advises."""
    new, before = folder.with_suffix(".new"), folder.with_suffix(".before")
    shutil.rmtree(new, ignore_errors=True)
    accelerator.save_state(new)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.rename(folder, before)
    os.rename(new, folder)
