"""The Trainer of Hugging Face and GrowthTrainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.trainers.clock import Clock
from benchmarks.trainers.model import SAVED, STEPS, Script, digest, host, samples, size, wrapped
from esper.integrations.growth_trainer import GrowthTrainer


class Timed(TrainerCallback):
    """Starts and stops a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.tick()


class Cutting(TrainerCallback):
    """Ends a run in the middle, with a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == SAVED:
            control.should_save = control.should_training_stop = True


def arguments(folder: Path, steps: int, *, checkpointing: bool) -> TrainingArguments:
    known = vars(TrainingArguments)["__dataclass_fields__"]
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=size().batch,
        per_device_eval_batch_size=size().batch,
        learning_rate=1e-3,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **{name: checkpointing},
    )


def trainer(args: TrainingArguments, kind: str, *callbacks: TrainerCallback) -> Trainer:
    """A plain one, or one whose seeds sleep or grow."""
    given: dict[str, Any] = {
        "args": args,
        "train_dataset": samples(size().batch * STEPS, 1),
        "eval_dataset": samples(size().held_out, 2),
        "callbacks": list(callbacks),
    }
    if kind == "plain":
        return Trainer(model=host(), **given)
    return GrowthTrainer(model=wrapped(grows=kind == "growing"), growth_options={"policy": Script()}, **given)


def step_seconds(folder: Path, kind: str, steps: int, *, checkpointing: bool) -> float:
    """Of a run, per update."""
    clock = Clock()
    trainer(arguments(folder, steps, checkpointing=checkpointing), kind, Timed(clock)).train()
    return clock.seconds


def bytes_of(folder: Path, kind: str, steps: int, *, checkpointing: bool) -> str:
    """Of the host, after a run."""
    one = trainer(arguments(folder, steps, checkpointing=checkpointing), kind)
    one.train()
    return digest(one.model.state_dict().items(), with_grafts=False)


def grown(folder: Path, *, is_cut: bool, checkpointing: bool = False) -> dict[str, Any]:
    """A run in which something grows; one that is cut ends in the middle, and another trainer goes on."""
    args = arguments(folder, STEPS, checkpointing=checkpointing)
    if is_cut:
        trainer(args, "growing", Cutting()).train()
    one = trainer(args, "growing")
    one.train(resume_from_checkpoint=is_cut)
    ended = [event for event in one.growth.events if event["event"] == "round_ended"]
    return {
        "rounds": [event["reason"] for event in ended],
        "outcomes": [report.outcome for report in one.growth.field_reports],
        "digest": digest(one.model.named_parameters(), with_grafts=True),
        "memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
