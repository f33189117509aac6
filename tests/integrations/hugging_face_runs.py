"""Runs of the Hugging Face Trainer, each in a process of its own."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate.state import AcceleratorState, GradientState

from esper.integrations.growth_trainer import GrowthTrainer
from tests.integrations.conftest import pass_all
from tests.integrations.small_models import arguments, growing
from tests.runtime.toy import timeless
from tests.tree_digest import tree_digest

TIMES = ("runtime", "per_second", "train_loss")


def forget() -> None:
    """What Accelerate has kept of a process that was forked."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def history(trainer: transformers.Trainer) -> list[dict[str, Any]]:
    """What was logged, without times and what is of the last start alone."""
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in trainer.state.log_history
    ]


def told(trainer: GrowthTrainer) -> dict[str, Any]:
    """All that a run with growth comes to."""
    run = trainer.growth._run
    return {
        "bytes": tree_digest(run.snapshots.body()),
        "clock": tree_digest(run.snapshots.clock()),
        "events": timeless(trainer.growth.events),
        "history": [line for line in history(trainer) if len(line) > 2],
        "flops": trainer.growth.train_flops,
        "outcomes": [report.outcome for report in trainer.growth.field_reports],
    }


def run(folder: Path, kind: str = "gpt2", **options: Any) -> dict[str, Any]:
    """One in which something grows, from the last checkpoint if there is any."""
    forget()
    pass_all(pytest.MonkeyPatch())
    args = arguments(
        folder / "out",
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        eval_strategy="epoch",
        **options,
    )
    trainer = growing(kind, args, growth={"keep_looks": (0.8,)}, growth_directory=folder / "log")
    trainer.train(resume_from_checkpoint=any((folder / "out").glob("checkpoint-*")))
    return told(trainer)
