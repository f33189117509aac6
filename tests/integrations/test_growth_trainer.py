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
from tests.integrations.conftest import pass_all
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


OFTEN = {"save_strategy": "steps", "save_steps": 10, "eval_strategy": "epoch"}


def plain(kind: str, path: Path, **options: Any) -> transformers.Trainer:
    args = arguments(path, **WAYS[kind], **OFTEN)
    trainer = transformers.Trainer(model=KINDS[kind].host(), **parts(kind, args), **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", WAYS)
def test_a_run_that_adopts_nothing_is_that_of_the_plain_trainer_to_the_byte(kind, none_pass, tmp_path):
    """Weights, moments, logs, state, callbacks, random streams and files, though arms were run in between."""
    told = Counting(), Counting()
    bare = plain(kind, tmp_path, callbacks=[told[0]])
    files = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-20/model.safetensors")}
    wanted = left(bare)
    trainer = growing(kind, arguments(tmp_path, **WAYS[kind], **OFTEN), callbacks=[told[1]])
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
    args = arguments(tmp_path, **WAYS[kind])
    trainer = growing(kind, args, Script({}), data_collator=collate, callbacks=[Capturing()])
    trainer.train()
    assert len(before) == EPOCHS * STEPS_PER_EPOCH


class KilledError(Exception):
    """The process is gone."""


class Killing(transformers.TrainerCallback):
    """Ends a run in the middle of an update."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KilledError


def whole(trainer: GrowthTrainer) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """All that a run comes to, with what has grown."""
    body, clock = trainer.growth._run.snapshots.body(), trainer.growth._run.snapshots.clock()
    logged = [line for line in history(trainer) if "train_loss" not in line]  # which is of the last start alone
    return tree_digest([body, clock]), logged, timeless(trainer.growth.events)


CUT = WAYS["bert"] | {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1}


def cut(folder: Path, **options: Any) -> GrowthTrainer:
    """A trainer of a run that adopts at its tenth update and saves at every third."""
    growth = {"keep_looks": (0.8,)}
    return growing("bert", arguments(folder / "out", **CUT), growth=growth, growth_directory=folder / "log", **options)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """What that run comes to, and its log, if nobody kills it."""
    folder = tmp_path_factory.mktemp("uncut")
    with pytest.MonkeyPatch.context() as patched:
        pass_all(patched)
        trainer = cut(folder)
        trainer.train()
    return whole(trainer), lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of the audit log."""
    return timeless([json.loads(line) for line in (folder / "log" / "audit.jsonl").read_text().splitlines()])


@pytest.mark.parametrize("at", [5, 8, 13, 19], ids=["dormant", "in the window", "adopted", "kept"])
def test_a_run_that_was_killed_goes_on_to_the_byte(at, all_pass, uncut, tmp_path):
    """What had been adopted is regrown before weights are loaded."""
    with pytest.raises(KilledError):
        cut(tmp_path, callbacks=[Killing(at)]).train()
    trainer = cut(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert [report.outcome for report in trainer.growth.field_reports] == ["FOSSILIZED"]
    assert (whole(trainer), lines(tmp_path)) == uncut


def logits(model: nn.Module, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**example(kind)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_grown_is_judged_kept_saved_and_loaded(kind, all_pass, tmp_path):
    """By from_pretrained, in a folder of the Trainer; the run can be gone on with from its last checkpoint."""
    trainer = growing(kind, arguments(tmp_path, **WAYS[kind], save_strategy="steps", save_steps=20))
    trainer.train()
    (report,) = trainer.growth.field_reports
    assert (report.outcome, report.layer_id) == ("FOSSILIZED", KINDS[kind].place)
    measured = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "grown"))
    loaded = KINDS[kind].auto.from_pretrained(tmp_path / "grown", trust_remote_code=True)
    assert torch.equal(logits(loaded, kind), logits(esper.export(trainer.model), kind))
    assert not torch.equal(logits(loaded, kind), logits(KINDS[kind].host(), kind))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.evaluate()["eval_loss"] == measured


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_that_grows_generates(kind, all_pass, tmp_path):
    trainer = growing(kind, arguments(tmp_path))
    trainer.train()
    model = trainer.model.eval()
    ids = example(kind)["input_ids"]
    with_cache, without = (
        model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=one) for one in (True, False)
    )
    assert with_cache.shape == (1, ids.shape[1] + 5)
    assert torch.equal(with_cache, without)


class Falling:
    """A metric that is best in a given evaluation."""

    def __init__(self, best: int):
        self.best, self.calls = best, 0

    def __call__(self, prediction):
        self.calls += 1
        return {"near": -abs(self.calls - self.best), "rows": len(prediction.label_ids)}


@pytest.mark.parametrize(("best", "grown"), [(1, 0), (4, 1)])
def test_the_best_model_comes_back_with_what_had_grown_by_then(best, grown, all_pass, tmp_path):
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    args = arguments(tmp_path, **epochs, metric_for_best_model="near", greater_is_better=True)
    trainer = growing("vit", args, growth={"keep_looks": (0.75,)}, compute_metrics=Falling(best))
    trainer.train()
    assert trainer.state.best_global_step == best * STEPS_PER_EPOCH
    assert sum(report.outcome == "FOSSILIZED" for report in trainer.growth.field_reports) == grown
    (told,) = [line["eval_loss"] for line in trainer.state.log_history if line.get("eval_near") == 0]
    assert trainer.evaluate()["eval_loss"] == told
    trainer.save_model(str(tmp_path / "best"))
    assert (tmp_path / "best" / "modeling_grown.py").exists() == bool(grown)
