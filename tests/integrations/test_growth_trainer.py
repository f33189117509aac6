"""The Trainer of Hugging Face with a model that grows: nothing changes until it does, and then all of it is kept."""

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
from tests.few import few
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

ALIKE = pytest.mark.long
"""One of several that are alike."""

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


@pytest.mark.parametrize("kind", few(WAYS, ["llama"]))
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


@pytest.mark.parametrize("kind", few(WAYS, ["bert"]))
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
        assert tree_digest([snapshots.body(), snapshots.clock()["scheduler"]]) == tree_digest(
            [body, clock["scheduler"]]
        )
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


CUT = WAYS["bert"] | {
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
}


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


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(5, marks=ALIKE, id="dormant"),
        pytest.param(8, id="in the window"),
        pytest.param(13, marks=ALIKE, id="adopted"),
        pytest.param(19, marks=ALIKE, id="kept"),
    ],
)
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


@pytest.mark.parametrize("kind", few(WAYS, ["vit"]))
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


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=ALIKE), "llama"])
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


def test_layers_that_became_wider_are_saved_as_a_whole_module(all_pass, tmp_path):
    """config.json could not tell their widths."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=10)
    script = Script({1: ["*"]}, blueprint="widen", settings=(("percent", 50),))
    trainer = growing("llama", args, script, {"colonies": ["*"]})
    trainer.train()
    trainer.save_model(str(tmp_path / "grown"))
    loaded = torch.load(tmp_path / "grown" / EXPORT, weights_only=False)
    more = sum(one.numel() for one in loaded.parameters()) - sum(
        one.numel() for one in KINDS["llama"].host().parameters()
    )
    assert more == trainer.growth.field_reports[0].parameters
    assert torch.equal(logits(loaded, "llama"), logits(esper.export(trainer.model), "llama"))
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(logits(loaded, "llama"), logits(esper.export(trainer.model), "llama"))


class Stream(torch.utils.data.IterableDataset):
    """Samples of which nobody knows how many there are."""

    def __iter__(self):
        yield from data("bert", 16, 1)


def test_a_stream_grows_at_the_ends_of_its_epochs(none_pass, tmp_path):
    """Where nobody knows in which update they will be."""
    trainer = growing("bert", arguments(tmp_path, max_steps=4, num_train_epochs=1), train_dataset=Stream())
    assert len(list(Stream())) == 4 * 4
    trainer.args.max_steps = 12
    trainer.train()
    assert trainer.growth.epoch == 2  # the third ends with the run
    assert "arm_ended" in {event["event"] for event in trainer.growth.events}


def test_a_run_without_whole_epochs_grows_by_steps(none_pass, tmp_path):
    growth = {"boundary_steps": 3, "embargo_epochs": 0}
    trainer = growing("bert", arguments(tmp_path, max_steps=15), Always(KINDS["bert"].place), growth)
    trainer.train()
    assert "arm_ended" in {event["event"] for event in trainer.growth.events}


class Always(Script):
    """A policy that germinates at every boundary."""

    def __init__(self, place: str):
        super().__init__({})
        self.place = place

    def decide(self, observation):
        self.plan = {observation.epoch: [self.place]}
        return super().decide(observation)


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", pytest.param("greedy", marks=ALIKE)])
def test_a_scheduler_that_goes_by_a_metric_is_left_to_the_trainer(scheduler, none_pass, tmp_path):
    way = {"lr_scheduler_type": scheduler, "eval_strategy": "epoch", "metric_for_best_model": "loss"}
    if scheduler == "reduce_lr_on_plateau":
        way["lr_scheduler_kwargs"] = {"patience": 0, "threshold": 1.0}
    bare = transformers.Trainer(model=KINDS["vit"].host(), **parts("vit", arguments(tmp_path, **way)))
    bare.train()
    trainer = growing("vit", arguments(tmp_path, **way))
    trainer.train()
    assert history(trainer) == history(bare)
    if scheduler == "reduce_lr_on_plateau":
        assert len({line["learning_rate"] for line in history(trainer) if "learning_rate" in line}) > 1


def test_held_out_losses_are_the_models_own_or_those_that_are_asked_for(none_pass, tmp_path):
    """Of several held-out data sets, all together."""
    calls = []

    def losses(model, inputs):
        calls.append(len(inputs["labels"]))
        return nn.functional.cross_entropy(
            model(input_ids=inputs["input_ids"]).logits, inputs["labels"], reduction="none"
        )

    held_out = {"one": data("bert", 10, 4), "other": data("bert", 6, 5)}
    args = arguments(tmp_path, eval_strategy="epoch")
    measured = []
    for one in (None, losses):
        trainer = growing("bert", args, Script({}), eval_dataset=held_out, losses=one)
        trainer.train()
        measured.append([event["select_loss"] for event in trainer.growth.events if "select_loss" in event])
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    assert set(calls) == {10, 6}


def test_the_session_takes_further_arguments(none_pass, tmp_path):
    heard = []
    options = {"policy": Script({}), "on_event": heard.append}
    trainer = growing("bert", arguments(tmp_path, max_steps=2), growth={"max_rounds": 0}, growth_options=options)
    trainer.train()
    assert {"model", "finished"} <= {event["event"] for event in heard}


REFUSED = {
    "no held-out data": ({"eval_dataset": None}, {}, "no eval_dataset"),
    "deepspeed": ({}, {"deepspeed": "zero.json"}, "DeepSpeed shares the parameters out"),
    "fsdp": ({}, {"fsdp": True}, "FSDP shares the parameters out"),
    "parallelism": ({}, {"parallelism_config": object()}, "shares the model or its sequences out"),
    "smaller batches": ({}, {"auto_find_batch_size": True}, "has trained already"),
    "compiled": ({}, {"torch_compile": True}, "compile"),
    "several GPUs": ({}, {"_n_gpu": 2}, "CUDA_VISIBLE_DEVICES"),
    "best of half checkpoints": (
        {},
        {"load_best_model_at_end": True, "save_only_model": True},
        "save_only_model=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_built(name, tmp_path):
    options, given, match = REFUSED[name]
    args = arguments(tmp_path)
    for argument, value in given.items():
        setattr(args, argument, value)
    with pytest.raises(ConfigError, match=match):
        growing("bert", args, **options)


def test_a_model_that_was_not_wrapped_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"esper\.wrap"):
        GrowthTrainer(model=KINDS["bert"].host(), **parts("bert", arguments(tmp_path)))


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    """As one that was built before the model was copied."""
    optimizers = (torch.optim.SGD(KINDS["bert"].host().parameters(), lr=0.1), None)
    with pytest.raises(ConfigError, match=r"41 of the 41 parameters in optimizers are not the model's"):
        growing("bert", arguments(tmp_path), optimizers=optimizers)


def test_an_optimizer_of_ones_own_is_taken(none_pass, tmp_path):
    model = esper.wrap(KINDS["bert"].host(), settings("bert"), example=example("bert"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = parts("bert", arguments(tmp_path)) | {"growth_options": {"policy": Script({1: [KINDS["bert"].place]})}}
    trainer = GrowthTrainer(model=model, optimizers=(optimizer, None), **given)
    trainer.train()
    assert "arm_ended" in {event["event"] for event in trainer.growth.events}


@pytest.mark.parametrize("what", ["no growth", "half written"])
def test_a_checkpoint_that_cannot_be_gone_on_with_is_told(what, tmp_path):
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, save_only_model=what == "no growth")
    growing("bert", args, growth={"max_rounds": 0}).train()
    if what == "half written":
        (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match="save_only_model" if what == "no growth" else "not written to its end"):
        growing("bert", args, growth={"max_rounds": 0}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_graft_on_trial_is_not_saved_for_others(all_pass, tmp_path):
    """Its checkpoints hold the session alone until it is kept."""

    class Saving(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            if state.epoch == 4:
                with pytest.raises(ConfigError, match="still live"):
                    trainer.save_model(str(tmp_path / "mine"))

    args = arguments(tmp_path, save_strategy="steps", save_steps=16)
    trainer = growing("bert", args, callbacks=[Saving()])
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-16").iterdir()}
    assert GROWTH in names
    assert "model.safetensors" not in names


def test_growth_that_pays_passes_the_gates_as_they_are(tmp_path):
    """A graft beats its twin on held-out samples, and is kept by others of them."""

    def rings(count, seed):
        images = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
        distance = images[:, 0, 0].norm(dim=1)
        labels = (distance > 0.8).long() + (distance > 1.5).long()
        return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    narrow = {"hidden_size": 4, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_act": "relu"}
    config = transformers.ViTConfig(**narrow, **dry, image_size=2, patch_size=2, num_channels=1, num_labels=3)
    train, held_out = rings(320, 1), rings(600, 2)
    args = arguments(
        tmp_path,
        num_train_epochs=8,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=200,
        learning_rate=2e-2,
        warmup_steps=0,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    growth = settings("vit", layers=["vit.layers.0"], max_growth=50.0)
    esper.wrap(model, growth, example={"pixel_values": train[0]["pixel_values"][None]})
    options = {"policy": Script({2: ["vit.layers.0"]}, settings=(("hidden", 16),))}
    trainer = GrowthTrainer(model=model, args=args, train_dataset=train, eval_dataset=held_out, growth_options=options)
    trainer.train()
    (report,) = trainer.growth.field_reports
    assert report.outcome == "FOSSILIZED"
