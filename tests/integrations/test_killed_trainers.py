"""Trainers whose process is killed: a new one goes on from the trainer's last checkpoint, and ends with the bytes of a
run that was never killed."""

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import accelerator
from fsspec.implementations.local import LocalFileOpener

import esper
from esper.runtime.training.trainer import Trainer
from tests.integrations import accelerate_runs, hugging_face_runs, lightning_runs
from tests.integrations.processes import Moment, Run, lived, started, told_by

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes")


@dataclass
class Case:
    """A trainer.

    Args:
        run: with it.
        saving: the middle of a checkpoint of its own.
        arm_step: a step in an arm, counted from its last checkpoint but one.
        others: more runs with it.
    """

    run: Callable[..., Any]
    saving: Moment
    arm_step: int
    others: dict[str, dict[str, Any]] = field(default_factory=dict)


CASES = {
    "Hugging Face": Case(
        hugging_face_runs.run,
        Moment(transformers.TrainerState, "save_to_json", 2),
        4,
        {
            "bert": {"kind": "bert"},
            "llama": {"kind": "llama", "activation_checkpointing": True},
            "vit": {"kind": "vit", "bf16": True},
        },
    ),
    "Lightning": Case(
        lightning_runs.run,
        Moment(LocalFileOpener, "commit", 4),
        15,
        {
            "a whole module": {"whole": True, "batch_norm": True},
            "bfloat16": {"precision": "bf16-mixed"},
            "accumulated": {"accumulate_grad_batches": 3},
        },
    ),
    "Accelerate": Case(
        accelerate_runs.run,
        Moment(accelerator, "save_custom_state", 4),
        20,
        {"bfloat16": {"precision": "bf16"}, "every batch": {"accumulate": 1}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_process_that_is_killed_again_and_again_ends_as_one_that_is_not(name, tmp_path):
    """Between two checkpoints, in an arm, and while a checkpoint is being written."""
    case = CASES[name]
    whole = lived(case.run, tmp_path / "whole")
    assert whole["outcomes"] == ["FOSSILIZED"]
    for moment in (Moment(torch.optim.AdamW, "step", 7), Moment(Trainer, "train", case.arm_step), case.saving):
        assert lived(case.run, tmp_path / "killed", moment) is None
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    assert lived(case.run, tmp_path / "killed") == whole
    other = lived(partial(with_a_number_drawn, case.run), tmp_path / "other")
    assert other["events"]
    assert other["bytes"] != whole["bytes"], "the negative control"


def with_a_number_drawn(run: Run, folder: Path) -> Any:
    """A process that goes on with other random numbers from its first step on."""
    after = esper.Session._after

    def drawing(session: esper.Session, *step: Any) -> None:
        after(session, *step)
        if drawn:
            torch.rand(drawn.pop())

    drawn = [1]
    esper.Session._after = drawing
    return run(folder)


OTHERS = [(name, which) for name, case in CASES.items() for which in case.others]


@pytest.mark.long
@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.parametrize(("name", "which"), OTHERS)
def test_a_process_that_is_killed_at_random_ends_as_one_that_is_not(name, which, how, tmp_path):
    """A process that is spawned is a Python of its own: it shares nothing with the one before but the disk."""
    run = partial(CASES[name].run, **CASES[name].others[which])
    begun = time.monotonic()
    whole = lived(run, tmp_path / "whole", how=how)
    seconds, chance, kills = time.monotonic() - begun, random.Random(f"{name} {which}"), 0
    assert whole["outcomes"]
    while kills < 6:
        folder = tmp_path / str(kills)
        while (told := _killed(run, folder, chance.uniform(0.1, 0.7) * seconds, how)) is None:
            kills += 1
        assert told == whole


def _killed(run: Run, folder: Path, seconds: float, how: str) -> Any:
    """What a run tells that is killed after some time; None if it had not ended by then."""
    (process,) = started(1, run, folder, how=how)
    process.join(seconds)
    process.kill()
    process.join()
    return told_by(folder, 0)
