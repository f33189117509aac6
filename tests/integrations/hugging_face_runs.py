"""Runs of the Hugging Face Trainer, each in a process of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState

from esper.integrations.growth_trainer import GrowthTrainer
from esper.kasmina.host.anchoring import is_espers
from tests.integrations.conftest import pass_all
from tests.integrations.small_models import KINDS, arguments, growing, parts
from tests.runtime.toy import timeless
from tests.tree_digest import tree_digest

TIMES = ("runtime", "per_second")


def forget() -> None:
    """What Accelerate has kept of a process that was forked."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def history(trainer: transformers.Trainer) -> list[dict[str, Any]]:
    """What was logged, without times and what is of the last start alone."""
    lines = [line for line in trainer.state.log_history if "train_loss" not in line]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines]


class Apart(transformers.TrainerCallback):
    """Gives each rank random numbers of its own."""

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        torch.rand(args.process_index)


def told(trainer: GrowthTrainer) -> dict[str, Any]:
    """All that a run with growth comes to."""
    run = trainer.growth._run
    return {
        "bytes": tree_digest(run.snapshots.body()),
        "clock": tree_digest(run.snapshots.clock()),
        "events": timeless(trainer.growth.events),
        "history": history(trainer),
        "flops": trainer.growth.train_flops,
        "samples": run.judge.num_samples,
        "outcomes": [report.outcome for report in trainer.growth.field_reports],
    }


def beside_plain(folder: Path) -> dict[str, Any]:
    """By two processes: without Esper, and with seeds that sleep; then a run in which something grows."""
    found, way = {}, {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", "num_train_epochs": 2}
    for name in ("plain", "dormant"):
        forget()
        args = arguments(folder / name, **way)
        if name == "plain":
            trainer = transformers.Trainer(model=KINDS["gpt2"].host(), **parts("gpt2", args))
        else:
            trainer = growing("gpt2", args, growth={"max_rounds": 0})
        trainer.train()
        host = {name: one for name, one in trainer.model.state_dict().items() if not is_espers(name)}
        found[name] = [tree_digest([host, torch.get_rng_state()]), history(trainer)]
    return found | {"grown": run(folder)}


def run(folder: Path, kind: str = "gpt2", **options: Any) -> dict[str, Any]:
    """One in which something grows, from the last checkpoint if there is any."""
    forget()
    pass_all(pytest.MonkeyPatch())
    args = arguments(
        folder / "out",
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=1,
        **options,
    )
    trainer = growing(kind, args, growth={"keep_looks": (0.8,)}, growth_directory=folder / "log", callbacks=[Apart()])
    trainer.train(resume_from_checkpoint=any((folder / "out").glob("checkpoint-*")))
    return told(trainer)
