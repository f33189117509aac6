"""The Trainer of Hugging Face with a model that grows: nothing changes until it does, and then all of it is kept."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import esper
from esper import CheckpointError, ConfigError
from esper.integrations.growth_trainer import EXPORT, GROWTH, GrowthTrainer
from esper.kasmina.host.anchoring import is_espers
from tests.integrations.small_models import (
    EPOCHS,
    KINDS,
    STEPS_PER_EPOCH,
    Script,
    arguments,
    data,
    example,
    growing,
    parts,
    settings,
)
from tests.runtime.toy import timeless
from tests.tree_digest import tree_digest

TIMES = ("runtime", "per_second")


class Counting(transformers.TrainerCallback):
    """Counts what callbacks are told."""

    def __init__(self):
        self.told = Counter()

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.told[name] += 1
        return super().__getattribute__(name)


def history(trainer: transformers.Trainer) -> list[dict[str, Any]]:
    """What was logged, without times."""
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in trainer.state.log_history
    ]


def left(trainer: transformers.Trainer) -> str:
    """A digest of all that a run of a plain Trainer comes to."""
    state = json.loads(json.dumps(vars(trainer.state) | {"log_history": history(trainer)}, default=lambda _: None))
    host = {name: one for name, one in trainer.model.state_dict().items() if not is_espers(name)}
    params = {p: n for n, p in trainer.model.named_parameters()}
    moments = {params[p]: one for p, one in trainer.optimizer.state.items() if not is_espers(params[p])}
    rest = [trainer.lr_scheduler.state_dict()["last_epoch"], torch.get_rng_state(), repr(trainer.control)]
    return tree_digest([state, host, dict(sorted(moments.items())), rest, float(trainer._tr_loss)])


WAYS = {
    "bert": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "gpt2": {"label_smoothing_factor": 0.1, "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 3},
    "llama": {"activation_checkpointing": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0},
    "vit": {"bf16": True},
}


def plain(kind: str, path: Path, **options: Any) -> transformers.Trainer:
    trainer = transformers.Trainer(model=KINDS[kind].host(), **parts(kind, arguments(path, **WAYS[kind])), **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", WAYS)
def test_a_run_that_adopts_nothing_is_that_of_the_plain_trainer_to_the_byte(kind, none_pass, tmp_path):
    """Weights, moments, logs, state, callbacks, random streams and files, though arms were run in between."""
    told = Counting(), Counting()
    bare = plain(kind, tmp_path, callbacks=[told[0]])
    files = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-20/model.safetensors")}
    wanted = left(bare)
    trainer = growing(kind, arguments(tmp_path, **WAYS[kind]), callbacks=[told[1]])
    trainer.train()
    assert "arm_ended" in {event["event"] for event in trainer.growth.events}
    assert left(trainer) == wanted
    assert told[0].told == told[1].told
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-20/model.safetensors")} == files


@pytest.mark.parametrize("kind", WAYS)
def test_an_update_that_is_made_again_comes_to_the_same_bytes(kind, monkeypatch, tmp_path):
    """Also where loading the data draws from the random streams that dropout draws from."""
    before: list[Any] = []
    after_step = esper.Session.after_step

    class Capturing(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            before.append(trainer.growth._run.captures.capture())

    def collate(samples):
        torch.rand(3)
        return transformers.default_data_collator(samples)

    def twice(session, batch, loss):
        run, snapshots = session._run, session._run.snapshots
        body, clock = snapshots.body(), snapshots.clock()
        run.captures.restore(before[-1], is_spare=True)
        assert torch.equal(trainer._make_update(batch), loss)
        assert tree_digest([snapshots.body(), snapshots.clock()["scheduler"]]) == tree_digest([body, clock["scheduler"]])
        snapshots.restore_clock(clock)
        after_step(session, batch, loss)

    monkeypatch.setattr(esper.Session, "after_step", twice)
    args = arguments(tmp_path, **WAYS[kind], save_strategy="no")
    trainer = growing(kind, args, Script({}), data_collator=collate, callbacks=[Capturing()])
    trainer.train()
    assert len(before) == EPOCHS * STEPS_PER_EPOCH
