"""What cannot work is refused with one clear message, and nothing is changed by it."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

import esper
from esper.checkpoint import store
from esper.runtime.judging.judge import Judge
from esper.runtime.state.random_state import random_state
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest


def build(**session: Any) -> esper.Session:
    return Recipe().build(**session).session


class TestEvaluate:
    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda model: 0.7, "returned a float. Return esper.Evaluation"),
            (lambda model: torch.zeros(300), "returned a Tensor"),
            (lambda model: esper.Evaluation(torch.tensor(0.7)), r"shape \(\). Return one loss per held-out sample"),
            (lambda model: esper.Evaluation(torch.zeros(300, 2)), "not their mean"),
            (lambda model: esper.Evaluation([0.1, 0.2]), r"shape \(2,\)"),
            (lambda model: esper.Evaluation(torch.zeros(300), torch.zeros(299)), "correct of shape"),
            (lambda model: esper.Evaluation(torch.zeros(300), groups=torch.zeros(3)), "groups of shape"),
            (lambda model: esper.Evaluation(torch.zeros(300), groups=[0] * 300), "fewer than 10 groups"),
            (lambda model: esper.Evaluation(torch.rand(300)), "other losses for the same model"),
            (lambda model: esper.Evaluation(np.random.rand(300)), "other losses for the same model"),
            (lambda model: esper.Evaluation([random.random() for _ in range(300)]), "other losses for the same model"),
        ],
    )
    def test_must_return_the_same_loss_of_every_sample(self, result, message):
        with pytest.raises(esper.EvaluationError, match=message):
            build(evaluate=result)

    def test_must_not_shuffle(self):
        orders = iter(range(2))

        def evaluate(model: nn.Module) -> esper.Evaluation:
            rows = torch.randperm(300, generator=torch.Generator().manual_seed(next(orders)))
            return esper.Evaluation(toy.evaluate(model).losses[rows])

        with pytest.raises(esper.EvaluationError, match="Use a fixed order without shuffling"):
            build(evaluate=evaluate)

    def test_must_not_change_its_length_later(self):
        sizes = iter([300, 300, 299])
        session = build(evaluate=lambda model: esper.Evaluation(torch.zeros(next(sizes))))
        with pytest.raises(esper.EvaluationError, match="299 losses after 300 at the start"):
            session.after_epoch()

    def test_sees_the_model_in_eval_mode_without_gradients_and_leaves_all_as_it_was(self):
        seen = []

        def evaluate(model: nn.Module) -> esper.Evaluation:
            seen.append((model.training, model[0].training, torch.is_grad_enabled()))
            torch.rand(3)
            return toy.evaluate(model)

        trial = Recipe().build()
        trial.model[0].eval()
        before = random_state()
        Judge(trial.model, evaluate, 0, trial.run.ranks)
        assert seen == [(False, False, False)] * 2
        assert (trial.model.training, trial.model[0].training) == (True, False)
        assert tree_digest(random_state()) == tree_digest(before)


class NoState:
    """A scheduler, loader or scaler that cannot be resumed."""

    def step(self) -> None:
        pass


def plateau(optimizer: Any, steps: int) -> Any:
    return ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": None}, "either loss=.* or train_step="),
        ({"train_step": lambda batch: 0.0}, "either loss=.* or train_step="),
        ({"planned_steps": 0}, "planned_steps must be a whole number of at least 1, not 0"),
        ({"planned_steps": 2.5}, "not 2.5"),
        ({"scheduler": NoState()}, "scheduler is a NoState without a state_dict"),
        ({"scaler": NoState()}, "scaler is a NoState without a state_dict"),
        ({"loader": NoState()}, "loader is a NoState without a state_dict"),
        ({"extra": {"ema": NoState()}}, "ema is a NoState without a state_dict"),
        ({"scheduler_every": "batch"}, "scheduler_every must be 'step' or 'epoch', not 'batch'"),
        ({"accumulate": 0}, "accumulate must be .* not 0"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm must be above 0 or None"),
        ({"loss": None, "train_step": lambda batch: 0.0, "clip_grad_norm": 1.0}, "your own code clips"),
        ({"loss": None, "train_step": lambda batch: 0.0, "accumulate": 2}, "your own code clips and accumulates"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(esper.ConfigError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: LBFGS(model.parameters()), "LBFGS evaluates the model inside its step"),
        (lambda model: AdamW(model[0].parameters()), "Call esper.wrap first, then build the optimizer"),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer, message):
    model = esper.wrap(toy.host(), growing())
    with pytest.raises(esper.ConfigError, match=message):
        esper.Session(model, optimizer(model), loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def test_an_optimizer_built_before_wrap_is_refused():
    model = toy.host()
    optimizer = AdamW(model.parameters())
    esper.wrap(model, growing())
    with pytest.raises(esper.ConfigError, match="does not hold the grafts of ''"):
        esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def test_a_model_without_seeds_is_refused():
    model = toy.host()
    with pytest.raises(esper.ConfigError, match=r"Call esper\.wrap"):
        esper.Session(model, AdamW(model.parameters()), loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


class Parallel(nn.Module):
    """Holds the model as torch's data-parallel classes do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("around", [compiled, Parallel])
def test_a_model_around_the_wrapped_one_is_refused(around):
    model = around(esper.wrap(toy.host(), growing()))
    with pytest.raises(esper.ConfigError, match="Give Session the wrapped model itself"):
        esper.Session(model, AdamW(model.parameters()), loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def test_layers_frozen_after_wrapping_are_refused():
    model = esper.wrap(toy.host(), growing(layers=["0", "2"]))
    model[2].requires_grad_(False)
    with pytest.raises(esper.ConfigError, match=r"grafts of '2', .*frozen after esper\.wrap"):
        esper.Session(model, AdamW(model.parameters()), loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, **tokens))


def a_layer_replaced(model: nn.Module) -> None:
    model[2] = nn.Linear(2, toy.CLASSES)


def a_layer_resized(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(torch.zeros(5, 2))
    model[2].bias = nn.Parameter(torch.zeros(5))


def a_span_begun_elsewhere(model: nn.Module) -> None:
    model[0] = nn.Linear(toy.FEATURES, 2)


CHANGES: dict[str, tuple[Callable[[], nn.Module], list[str] | None, Callable[[nn.Module], Any], str]] = {
    "replaced": (toy.host, ["0", "2"], a_layer_replaced, r"'2' was replaced since esper\.wrap"),
    "resized": (toy.host, ["0", "2"], a_layer_resized, r"'2.weight' was \(3, 2\) .* and is \(5, 2\) now"),
    "start of a span": (toy.host, ["0:1"], a_span_begun_elsewhere, "'0:1' was replaced since"),
    "embeddings": (
        gpt2,
        ["lm_head"],
        lambda model: model.resize_token_embeddings(60, mean_resizing=False),
        r"'transformer.wte.weight' was \(50, 8\) .* and is \(60, 8\) now",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_was_changed_after_wrapping_is_refused(name):
    make, layers, change, message = CHANGES[name]
    model = esper.wrap(make(), growing(layers=layers))
    optimizer = AdamW(model.parameters())
    change(model)
    with pytest.raises(esper.ConfigError, match=message + ".*Change the model first, then wrap it"):
        esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def test_a_model_that_was_changed_before_the_first_step_is_refused_there():
    trial = Recipe(growing(layers=["0", "2"])).build()
    a_layer_resized(trial.model)
    with pytest.raises(esper.ConfigError, match=r"'2.weight' was \(3, 2\)"):
        trial.session.step(next(toy.batches(0)))
    esper.wrap(esper.unwrap(trial.model), growing(layers=["0", "2"]))


class TestAnAverageOfTheWrappedModel:
    """Its copy has no grafts, and gets none when the model does."""

    @staticmethod
    def build(**config: Any) -> esper.Session:
        model = esper.wrap(toy.host(), growing(**config))
        return esper.Session(
            model,
            AdamW(model.parameters()),
            loss=toy.loss,
            evaluate=toy.evaluate,
            planned_steps=10,
            extra={"ema": AveragedModel(model)},
        )

    def test_is_refused_where_the_model_may_grow(self):
        with pytest.raises(
            esper.ConfigError, match=r"ema is a AveragedModel with a copy of the wrapped model.*max_rounds=0"
        ):
            self.build()

    def test_is_taken_where_it_never_grows(self, tmp_path):
        self.build(max_rounds=0).save(tmp_path)


@pytest.mark.parametrize("num_seeds", [1.5, 0, 9])
def test_a_refused_rechunk_changes_nothing(num_seeds):
    trial = Recipe().build()
    before = TestCheckpoints.everything(trial)
    with pytest.raises(esper.ConfigError, match=f"not {num_seeds}"):
        trial.session.rechunk("", num_seeds)
    assert TestCheckpoints.everything(trial) == before


def test_a_plateau_scheduler_is_stepped_by_the_held_out_loss_after_epochs_only():
    with pytest.raises(esper.ConfigError, match="scheduler_every='epoch'"):
        Recipe(scheduler=plateau).build()
    trial = Recipe(scheduler=lambda o, n: ReduceLROnPlateau(o, patience=0, threshold=10.0)).build(
        scheduler_every="epoch"
    )
    trial.train(3)
    assert trial.optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 0.1**3)


def test_a_plateau_scheduler_that_the_callers_own_step_moves_is_taken():
    """Whatever it goes by."""
    trial = Recipe(scheduler=lambda o, n: ReduceLROnPlateau(o, mode="max")).build(
        loss=None, train_step=lambda batch: 0.0
    )
    assert trial.run.snapshots.scheduler()["mode"] == "max"


def test_a_refused_session_leaves_no_hook_on_the_optimizer():
    model = esper.wrap(toy.host(), growing())
    optimizer = AdamW(model.parameters())
    with pytest.raises(esper.EvaluationError):
        esper.Session(model, optimizer, loss=toy.loss, evaluate=lambda model: 0.0, planned_steps=10)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_loss_must_be_one_scalar():
    session = build(loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"))
    with pytest.raises(esper.ConfigError, match=r"loss returned \(16,\); return one scalar tensor"):
        session.step(next(toy.batches(0)))
    with pytest.raises(esper.ConfigError, match="loss returned float"):
        build(loss=lambda model, batch: 0.5).step(next(toy.batches(0)))


def test_a_step_with_more_than_a_closure_is_refused():
    trial = Recipe().build()
    toy.loss(trial.model, next(toy.batches(0))).backward()
    with pytest.raises(esper.ConfigError, match="closure and nothing else"):
        trial.optimizer.step(0.5)


def test_after_step_is_for_loops_of_ones_own():
    session = build()
    with pytest.raises(esper.ConfigError, match=r"call session\.step"):
        session.after_step(next(toy.batches(0)), 0.5)


@pytest.mark.parametrize("call", ["step", "after_epoch", "finish", "load"])
def test_a_finished_session_is_finished(call, tmp_path):
    trial = Recipe().build()
    trial.session.save(tmp_path)
    trial.session.finish()
    arguments = {"step": (next(toy.batches(0)),), "load": (tmp_path,)}.get(call, ())
    with pytest.raises(esper.ConfigError, match="finished"):
        getattr(trial.session, call)(*arguments)


class TestTheDirectory:
    def test_of_another_run_is_left_alone(self, tmp_path):
        build(directory=tmp_path).after_epoch()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        session = build(directory=tmp_path)
        for call in (lambda: session.step(next(toy.batches(0))), session.after_epoch, session.finish):
            with pytest.raises(esper.ConfigError, match=r"holds another run.*session.load"):
                call()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_may_be_gone_on_with_after_load(self, tmp_path):
        build(directory=tmp_path).after_epoch()
        session = build(directory=tmp_path)
        session.load(tmp_path / "checkpoints")
        session.step(next(toy.batches(1)))

    def test_of_a_run_that_died_before_its_first_checkpoint_is_begun_anew(self, tmp_path):
        build(directory=tmp_path).step(next(toy.batches(0)))
        session = build(directory=tmp_path)
        session.after_epoch()
        lines = (tmp_path / "audit.jsonl").read_text().splitlines()
        told = [json.loads(line)["event"] for line in lines]
        assert told == ["model", "note", "transition", "round_begun", "checkpoint"]


def other_shape() -> nn.Module:
    return nn.Sequential(nn.Linear(toy.FEATURES, 3), nn.ReLU(), nn.Linear(3, toy.CLASSES))


def other_names() -> nn.Module:
    return nn.Sequential(nn.Linear(toy.FEATURES, 2), nn.ReLU(), nn.ReLU(), nn.Linear(2, toy.CLASSES))


def no_decay(parameters: Any) -> Any:
    parameters = list(parameters)
    return AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}], lr=0.03)


class FailingLoader(esper.BatchLoader):
    """Refuses any state but its own."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state != self.state_dict():
            raise RuntimeError("no such position")


OTHERS: dict[str, tuple[Callable[[], Trial], str]] = {
    "model": (Recipe(model=other_shape).build, "the tensor '0.weight' is"),
    "names": (Recipe(model=other_names).build, "only the checkpoint has the tensor '2.bias'"),
    "places": (Recipe(growing(layers=["", "2"])).build, "has the place '2'"),
    "seeds": (Recipe(growing(layers={"": 3})).build, "seeds at the start at '' is 3 here and 1 there"),
    "optimizer": (Recipe(optimizer=lambda p: SGD(p, lr=0.1)).build, "the object 'optimizer' is SGD here and AdamW"),
    "groups": (Recipe(optimizer=no_decay).build, "has the parameter group '1'"),
    "no scheduler": (Recipe(scheduler=None).build, "only the checkpoint has the object 'scheduler'"),
    "scheduler": (Recipe(scheduler=lambda o, n: LambdaLR(o, lambda step: 1.0)).build, "'scheduler' is LambdaLR"),
    "scaler": (lambda: Recipe().build(scaler=torch.amp.GradScaler("cpu")), "only this run has the object 'scaler'"),
    "planned steps": (Recipe(epochs=13).build, "planned_steps is 130 here and 120 there"),
    "loader": (lambda: Recipe().build(loader=toy.loader()), "holds no position in the data"),
}


class TestCheckpoints:
    """A refused load names what does not fit and changes nothing."""

    @staticmethod
    def everything(trial: Trial) -> str:
        loader = trial.loader
        state = [trial.run.captures.capture(), trial.session.events, None if loader is None else loader.state_dict()]
        return tree_digest([state, trial.session.epoch, trial.session.train_flops])

    def refused(self, trial: Trial, path: Any, message: str) -> None:
        for batch in list(toy.batches(0))[:3]:
            trial.session.step(batch)
        before = self.everything(trial)
        with pytest.raises(esper.CheckpointError, match=message):
            trial.session.load(path)
        assert self.everything(trial) == before
        trial.session.step(next(toy.batches(0)))

    @pytest.fixture
    def saved(self, tmp_path):
        trial = Recipe().build().train(6)
        trial.session.save(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("other", OTHERS)
    def test_of_another_run_are_refused(self, other, saved):
        build, message = OTHERS[other]
        self.refused(build(), saved, message)

    def test_of_another_held_out_set_are_refused(self, saved):
        trial = Recipe().build(evaluate=lambda model: esper.Evaluation(torch.zeros(77)))
        self.refused(trial, saved, "held_out_samples is 77 here and 300 there")

    def test_that_lack_an_extra_are_refused(self, saved):
        trial = Recipe().build(extra={"more": nn.Linear(2, 2)})
        self.refused(trial, saved, "only this run has the object 'extra.more'")

    def test_at_another_position_than_the_loader_has_are_refused(self, tmp_path):
        source = toy.loader()
        trial = Recipe().build(loader=source)
        for batch in source:
            trial.session.step(batch)
            if trial.session.step_count == 7:
                break
        trial.session.save(tmp_path)
        short = esper.BatchLoader((toy.DATA.x[:64], toy.DATA.y[:64]), toy.BATCH, seed=3)
        self.refused(Recipe().build(loader=short), tmp_path, "an epoch now has 4")

    def test_that_an_object_of_the_user_refuses_are_refused_whole(self, tmp_path):
        source = toy.loader()
        trial = Recipe().build(loader=source)
        trial.session.step(next(iter(source)))
        trial.session.save(tmp_path)
        source = FailingLoader((toy.DATA.x, toy.DATA.y), toy.BATCH, seed=3)
        self.refused(
            Recipe().build(loader=source), tmp_path, r"does not fit this run: RuntimeError\('no such position'\)"
        )

    def test_that_are_damaged_are_refused(self, saved):
        tensors = saved / "000001" / "tensors.safetensors"
        raw = bytearray(tensors.read_bytes())
        raw[-3] ^= 1
        tensors.write_bytes(raw)
        self.refused(Recipe().build(), saved, "damaged")

    def test_that_lost_a_file_are_refused(self, saved):
        (saved / "000001" / "tensors.safetensors").unlink()
        self.refused(Recipe().build(), saved, "damaged")

    def test_that_are_not_there_are_refused(self, tmp_path):
        self.refused(Recipe().build(), tmp_path / "nowhere", "no checkpoint")

    def test_of_something_else_are_refused(self, tmp_path):
        store.write(tmp_path, {"weights": torch.zeros(3)})
        self.refused(Recipe().build(), tmp_path, "was not saved by a session")


def test_a_state_that_cannot_be_stored_is_refused_by_name(tmp_path):
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"lock": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    session = build(extra={"odd": Odd()})
    with pytest.raises(esper.CheckpointError, match=r"odd.*lock is a object, which cannot be stored"):
        session.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_gate_samples_are_said():
    (note,) = Recipe().build().events("note")
    assert "180 gate samples are few (below 500)" in note["text"]
    assert Recipe(growing(max_rounds=0)).build().events("note") == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_held_out_losses_that_are_not_finite_are_said(value):
    def evaluate(model: nn.Module) -> esper.Evaluation:
        losses = toy.evaluate(model).losses.clone()
        losses[:7] = value
        return esper.Evaluation(losses)

    texts = [note["text"] for note in Recipe().build(evaluate=evaluate).events("note")]
    assert "7 of 300 held-out losses are not finite: nothing can be judged." in texts
    assert not [note for note in Recipe().build().events("note") if "finite" in note["text"]]


class TestAMetricThatIsNotFinite:
    """What has none at the start never counts in it; what loses it later does."""

    @staticmethod
    def holey(rows: slice, is_holey: Callable[[], bool] = lambda: True) -> Callable[[nn.Module], esper.Evaluation]:
        def evaluate(model: nn.Module) -> esper.Evaluation:
            found = toy.evaluate(model)
            correct = torch.as_tensor(found.correct).clone()
            if is_holey():
                correct[rows] = torch.nan
            return esper.Evaluation(found.losses, correct)

        return evaluate

    def test_is_said_and_left_out_and_growth_goes_on(self):
        whole = Recipe().build().train(6)
        trial = Recipe().build(evaluate=self.holey(slice(3))).train(6)
        assert any("3 of 300 values of Evaluation.correct are not finite" in n["text"] for n in trial.events("note"))
        assert trial.events("round_ended")[0]["adopted"] is not None
        losses = [[event["val_loss"] for event in one.events("epoch")] for one in (trial, whole)]
        assert losses[0] == losses[1]
        assert not any("Evaluation.correct" in note["text"] for note in whole.events("note"))

    def test_is_the_mean_over_the_others(self):
        split = Recipe().build().run.judge.split
        judge = Recipe().build(evaluate=self.holey(split.select[:2])).run.judge
        correct = torch.as_tensor(judge.measure().correct)[split.select[2:]]
        assert judge.measure().metric(split.select) == pytest.approx(float(correct.mean()))

    def test_everywhere_means_that_there_is_none(self):
        trial = Recipe().build(evaluate=self.holey(slice(None))).train(6)
        assert {event["val_metric"] for event in trial.events("epoch")} == {None}
        assert trial.events("round_ended")[0]["adopted"] is not None

    def test_that_comes_later_passes_no_gate(self):
        """A graft must not hide samples by making their metric undefined."""
        calls: list[int] = []
        trial = Recipe().build(evaluate=self.holey(slice(None), lambda: calls.append(1) or len(calls) > 2)).train(6)
        assert not any("Evaluation.correct" in note["text"] for note in trial.events("note"))
        (arm,) = trial.events("arm_ended")
        assert not arm["passed"]
        assert "metric_gain is nan" in arm["verdict"]

    def test_survives_a_checkpoint(self, tmp_path):
        trial = Recipe().build(evaluate=self.holey(slice(3)), directory=tmp_path).train(5)
        resumed = Recipe().build(evaluate=self.holey(slice(3)))
        resumed.session.load(tmp_path / "checkpoints")
        assert resumed.train(1).events("epoch")[-1]["val_metric"] == trial.train(1).events("epoch")[-1]["val_metric"]


def test_an_unknown_blueprint_or_setting_is_an_answer_not_an_error():
    trial = Recipe().build()
    for command, reason in (
        (Script({}, blueprint="bottleneck_mpl").command(""), "Did you mean 'bottleneck_mlp'"),
        (Script({}, hidden=0).command(""), "hidden must be"),
        (Script({}).command("nowhere"), "There is no place 'nowhere'. Valid: \"\"."),
    ):
        answer = trial.session.submit(command)
        assert not answer.accepted
        assert reason in answer.reason


def test_a_scheduler_that_is_stepped_by_epochs_is_stepped_by_epochs():
    made = []

    def scheduler(optimizer, steps):
        made.append(CosineAnnealingLR(optimizer, 12))
        return made[0]

    Recipe(scheduler=scheduler).build(scheduler_every="epoch").train(4)
    assert made[0].last_epoch == 4
