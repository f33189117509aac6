"""A run that was cut and resumed ends as if it had never been cut, to the byte."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

import esper
from esper.checkpoint import store
from esper.contracts.commands import Command
from esper.contracts.events import Note
from esper.contracts.lifecycle import State
from esper.runtime.record.log_files import LOOSE
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless
from tests.tree_digest import tree_digest

ROOT = Path(__file__).parents[2]


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


RECIPE = Recipe(
    growing(layers=["", "4"], keep_looks=(0.95,), ramp_fraction=0.1),
    model=noisy_host,
    policy=Script({1: ["", "4"]}),
)

POINTS: dict[str, Callable[[Trial], bool]] = {
    "at an epoch boundary": lambda trial: trial.session.epoch == 1,
    "in the middle of an epoch": lambda trial: trial.session.step_count == 7,
    "in the window of a round": lambda trial: trial.session.step_count == 23,
    "while a graft is fine-tuned": lambda trial: trial.session.step_count == 66,
}


def cut(recipe: Recipe, is_reached: Callable[[Trial], bool], path: Path, **session: Any) -> Trial:
    """Train to a point, save there, and forget about it."""
    source = toy.loader()
    trial = recipe.build(loader=source, **session)
    for _ in range(trial.epochs):
        for batch in source:
            trial.session.step(batch)
            if is_reached(trial):
                trial.session.save(path)
                return trial
        trial.session.after_epoch()
        if is_reached(trial):
            trial.session.save(path)
            return trial
    raise AssertionError("the run ended before that")


def resume(recipe: Recipe, path: Path, **session: Any) -> Trial:
    """Train to the end from a checkpoint, in objects that were built anew."""
    source = toy.loader()
    trial = recipe.build(loader=source, **session)
    torch.rand(5)
    trial.session.load(path)
    return toy.train_from(trial, source)


def whole(recipe: Recipe, **session: Any) -> Trial:
    """The run that was never cut."""
    source = toy.loader()
    return toy.train_from(recipe.build(loader=source, **session), source)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal(resumed: Trial, expected: Trial) -> None:
    assert resumed.digest() == expected.digest()
    assert timeless(resumed.session.events) == timeless(expected.session.events)
    assert resumed.session.train_flops == expected.session.train_flops


@pytest.mark.parametrize("point", few(POINTS, ["in the window of a round", "while a graft is fine-tuned"]))
def test_a_run_resumes_to_the_byte(point, tmp_path):
    cut(RECIPE, POINTS[point], tmp_path)
    assert_equal(resume(RECIPE, tmp_path), whole(RECIPE))


@pytest.mark.parametrize(
    ("step", "on_disk"), few(product((20, 35, 45), (True, False)), [(20, False), (35, True), (45, False)])
)
def test_a_run_resumes_to_the_byte_around_the_marks_of_a_window(step, on_disk, tmp_path):
    """Before the first mark, between two, and after the last. Looks at them are booked."""
    recipe = Recipe(growing(compare="flops"), model=noisy_host, policy=Script({1: [""]}, hidden=2))
    session = {"directory": tmp_path / "run"} if on_disk else {}
    cut(recipe, lambda trial: trial.session.step_count == step, tmp_path / "saved", **session)
    expected = whole(recipe)
    assert_equal(resume(recipe, tmp_path / "saved"), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3},
        pytest.param({"optimizer": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9)}, marks=pytest.mark.long),
        {"scaler": lambda: torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=11)},
    ],
    ids=["accumulated gradients", "momentum", "a gradient scaler"],
)
def test_a_run_resumes_to_the_byte_with(options, tmp_path):
    recipe = Recipe(RECIPE.config, model=noisy_host, policy=RECIPE.policy)
    recipe.optimizer = options.get("optimizer", recipe.optimizer)

    def session() -> dict[str, Any]:
        return {"scaler": options["scaler"]()} if "scaler" in options else {"accumulate": options.get("accumulate", 1)}

    for step in (23, 67):
        cut(recipe, lambda trial, step=step: trial.session.step_count == step, tmp_path, **session())
        assert_equal(resume(recipe, tmp_path, **session()), whole(recipe, **session()))


def test_a_run_resumes_to_the_byte_while_a_graft_is_blended_out(tmp_path):
    def cull(trial: Trial, expected: bool = True) -> Trial:
        answer = trial.session.submit(Command("", "all", State.CULLED, "by hand"))
        assert answer.accepted is expected
        return trial

    def train(trial: Trial, source: esper.BatchLoader, path: Path | None) -> Trial:
        for _ in range(trial.session.epoch, trial.epochs):
            for batch in source:
                trial.session.step(batch)
                if trial.session.step_count == 66:
                    cull(trial)
                if trial.session.step_count == 70 and path is not None:
                    trial.session.save(path)
                    return trial
            trial.session.after_epoch()
        trial.session.finish()
        return trial

    sources = toy.loader(), toy.loader()
    recipe = Recipe(growing(ramp_fraction=0.1, keep_looks=(0.95,)), model=noisy_host)
    expected = train(recipe.build(loader=sources[0]), sources[0], None)
    in_between = train(recipe.build(loader=sources[1]), sources[1], tmp_path)
    assert 0 < float(in_between.run.places[""].state.alpha) < 1
    assert_equal(resume(recipe, tmp_path), expected)


class CutError(BaseException):
    """Cuts an arm, as a kill would."""


@pytest.mark.parametrize("step", few([6, 38, 46], [38]))
def test_a_run_resumes_to_the_byte_in_the_middle_of_an_arm(step, tmp_path):
    """Steps 6 and 38 are in the first of two arms of 40 steps, with and without a checkpoint within it; 46 in the
    second."""
    calls = []

    def loss(model, batch):
        if trial.run.arm is not None and torch.is_grad_enabled():  # batch norms are renewed without
            calls.append(trial.run.arm)
            if len(calls) == step:
                raise CutError
        return toy.loss(model, batch)

    source = toy.loader()
    trial = RECIPE.build(loader=source, loss=loss, directory=tmp_path, checkpoint_steps=10)
    with pytest.raises(CutError):
        toy.train_from(trial, source)
    saved = store.read(tmp_path / "checkpoints")
    now = saved["growth"]["round"]
    assert (now is not None and now["arm_step"] > 0) == (step == 38)
    assert_equal(resume(RECIPE, tmp_path / "checkpoints"), whole(RECIPE))


def test_a_run_without_epochs_resumes_to_the_byte_in_an_arm_that_ends_at_a_boundary(tmp_path):
    """The boundary that follows the round in the same step is made up for."""
    recipe = Recipe(growing(boundary_steps=10), model=noisy_host, policy=Script({0: [""]}))
    source = toy.loader()
    trial = recipe.build(
        loader=source, directory=tmp_path, checkpoint_steps=5, loss=fails_once(lambda: trial, KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        toy.train_from(trial, source)
    resumed, expected = resume(recipe, tmp_path / "checkpoints"), whole(recipe)
    assert_equal(resumed, expected)
    assert [event["step"] for event in resumed.events("epoch")] == list(range(10, 121, 10))


def test_a_run_that_is_saved_after_an_interruption_in_an_arm_resumes_to_the_byte(tmp_path):
    """As by ``except KeyboardInterrupt: session.save(...)``: the round is not lost."""
    source = toy.loader()
    trial = RECIPE.build(loader=source, loss=fails_once(lambda: trial, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        toy.train_from(trial, source)
    trial.session.save(tmp_path)
    resumed, expected = resume(RECIPE, tmp_path), whole(RECIPE)
    assert resumed.digest() == expected.digest()
    assert resumed.run.books.arm_flops > expected.run.books.arm_flops  # what was cut was paid for nevertheless


def test_a_round_that_is_interrupted_in_a_loop_of_ones_own_is_given_up():
    """The run has gone on by a step of its own before the session hears of it."""

    def train_step(batch):
        loss = fails(trial.model, batch)
        loss.backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        return loss

    fails = fails_once(lambda: trial, KeyboardInterrupt)
    trial = Recipe(growing(round_fraction=0.29), scheduler=None).build(loss=None, train_step=train_step)
    for batch in [batch for epoch in range(6) for batch in toy.batches(epoch)]:
        loss = train_step(batch)
        try:
            trial.session.after_step(batch, loss)
        except KeyboardInterrupt:
            assert trial.session.step_count == 45
        if trial.session.step_count % 10 == 0:
            trial.session.after_epoch()
    (ended,) = trial.events("round_ended")
    assert (ended["reason"], ended["step"]) == ("its arms were interrupted", 45)


def test_strategies_that_read_gradient_norms_resume_to_the_byte_in_a_loop_of_ones_own(tmp_path):
    """A resumed run counts a step anew, and undoes it; the norms of the caller's step before are still to be read."""

    def build() -> Trial:
        def train_step(batch):
            loss = toy.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        def step(batch):
            session.after_step(batch, train_step(batch))

        model = esper.wrap(toy.host(), growing(round_fraction=0.2, ramp_fraction=0.3, drift_threshold=0.12))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        session = esper.Session(
            model, optimizer, train_step=train_step, evaluate=toy.evaluate, planned_steps=120, policy=Script({})
        )
        trial = Trial(model, optimizer, session, 12)
        session.step = step
        return trial

    expected = build().train(1)
    expected.session.germinate("", "all", settings={"hidden": 8}, strategy="grad_norm_gated")
    expected.train_until(lambda trial: trial.session.step_count == 25)
    expected.session.save(tmp_path)
    resumed = build()
    resumed.session.load(tmp_path)
    assert resumed.state() is State.GRAFTING
    for trial in (expected, resumed):
        for batch in list(toy.batches(2))[5:]:
            trial.session.step(batch)
        trial.session.after_epoch()
        trial.train(1)
    assert resumed.digest() == expected.digest()


class Grouped(torch.nn.Module):
    """A host with a module of the name that Esper's own groups have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Module()
        self.body.groups = toy.host()

    def forward(self, x):
        return self.body.groups(x)


def test_a_place_below_a_module_named_groups_is_resumed_to_the_byte(tmp_path):
    recipe = Recipe(growing(layers=["body.groups"]), model=Grouped, policy=Script({}))
    trial = recipe.build().train(1)
    trial.session.germinate("body.groups", "all", settings={"hidden": 8})
    trial.train(2)
    trial.session.save(tmp_path)
    resumed = recipe.build()
    resumed.session.load(tmp_path)
    assert resumed.state("body.groups") is State.GRAFTING
    assert torch.equal(resumed.live("body.groups"), trial.live("body.groups"))
    assert any("_esper" in name for name in resumed.run.snapshots.body()["model"])


def fails_once(get_trial: Callable[[], Trial], error: type[BaseException]) -> Callable[..., torch.Tensor]:
    """A loss that raises once, at the twelfth step of an arm."""
    calls: list[str] = []

    def loss(model, batch):
        if get_trial().run.arm is not None:
            calls.append(get_trial().run.arm)
            if len(calls) == 12:
                raise error
        return toy.loss(model, batch)

    return loss


def test_a_finished_run_stays_finished(tmp_path):
    expected = whole(RECIPE, directory=tmp_path)
    trial = RECIPE.build(loader=toy.loader())
    trial.session.load(tmp_path / "checkpoints")
    assert_equal(trial, expected)
    with pytest.raises(esper.ConfigError, match="finished"):
        trial.session.step(next(toy.batches(0)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("trial", "points"),
    [
        ("round", ("arm:31",)),  # an arm of the first round
        ("round", ("arm:31", "run:55", "arm:10")),  # then the run, and another arm
        ("live", ("run:33", "arm:9")),  # GRAFTING, the twin of the first trial
    ],
)
def test_a_killed_run_resumes_to_the_byte(trial, points, tmp_path):
    def start(name: str, kill_at: str | None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "TRIAL": trial}
        if kill_at is not None:
            environment |= {"KILL_AT": kill_at}
        command = [sys.executable, "-m", "tests.runtime.killed_run", str(tmp_path / name)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    for kill_at in points:
        killed = start("cut", kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, expected = start("cut", None), start("whole", None)
    assert resumed.returncode == expected.returncode == 0, resumed.stderr + expected.stderr
    assert json.loads(resumed.stdout) == json.loads(expected.stdout)
    for name in ("audit.jsonl", "metrics.jsonl"):
        logs = [read_lines(tmp_path / run / name) for run in ("cut", "whole")]
        assert timeless(logs[0]) == timeless(logs[1])
        assert len(logs[0]) > 5


def forget_optimizer(state: dict[str, Any]) -> None:
    state["body"]["optimizer"]["state"] = {}


def forget_randomness(state: dict[str, Any]) -> None:
    state["clock"]["random"]["torch"] = torch.Generator().manual_seed(99).get_state()


def forget_position(state: dict[str, Any]) -> None:
    state["loader"]["position"] = 0


def forget_schedule(state: dict[str, Any]) -> None:
    state["clock"]["scheduler"]["last_epoch"] = 0


def forget_slots(name: str) -> Callable[[dict[str, Any]], None]:
    def forget(state: dict[str, Any]) -> None:
        forgotten = [tensor.zero_() for key, tensor in state["body"]["model"].items() if key.endswith(f"arena.{name}")]
        assert any(tensor.numel() for tensor in forgotten)

    return forget


def forget_gradients(state: dict[str, Any]) -> None:
    assert state["body"]["grads"]
    state["body"]["grads"] = {}


def forget_buffers(state: dict[str, Any]) -> None:
    state["body"]["model"]["1.running_mean"].zero_()


@pytest.mark.parametrize(
    "forget",
    [
        forget_optimizer,
        forget_randomness,
        pytest.param(forget_position, marks=pytest.mark.long),
        pytest.param(forget_schedule, marks=pytest.mark.long),
        pytest.param(forget_slots("exp_avg"), marks=pytest.mark.long),
        forget_slots("exp_avg_sq"),
        pytest.param(forget_slots("updates"), marks=pytest.mark.long),
        forget_gradients,
        pytest.param(forget_buffers, marks=pytest.mark.long),
    ],
    ids=lambda forget: forget.__qualname__,
)
def test_a_checkpoint_that_forgot_something_would_be_noticed(forget, tmp_path):
    """The control of all tests above: take one thing out, and the resumed run ends elsewhere."""
    accumulate = 4 if forget is forget_gradients else 1
    cut(RECIPE, POINTS["while a graft is fine-tuned"], tmp_path, accumulate=accumulate)
    untouched = resume(RECIPE, tmp_path, accumulate=accumulate).digest()
    state = store.read(tmp_path)
    forget(state)
    store.write(tmp_path, state)
    assert resume(RECIPE, tmp_path, accumulate=accumulate).digest() != untouched


def test_logs_of_a_resumed_run_have_nothing_twice(tmp_path):
    source = toy.loader()
    trial = RECIPE.build(loader=source, directory=tmp_path)
    for _ in range(3):
        for batch in source:
            trial.session.step(batch)
        trial.session.after_epoch()
    trial.run.journal.write(Note(text="written after the checkpoint, and lost with the process"))
    resumed = resume(RECIPE, tmp_path / "checkpoints", directory=tmp_path)
    lines = read_lines(tmp_path / "audit.jsonl") + read_lines(tmp_path / "metrics.jsonl")
    kept = [line for line in lines if line["event"] not in LOOSE]  # of which tests/runtime/test_records.py tells
    assert sorted(kept, key=str) == sorted(resumed.session.events, key=str)
    assert not any("lost with the process" in str(line) for line in lines)


class Average:
    """A running average of the host's weights, as users keep one."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.values = {name: value.clone() for name, value in esper.host_state_dict(model).items()}

    def update(self, model: torch.nn.Module) -> None:
        for name, value in esper.host_state_dict(model).items():
            self.values[name] = 0.9 * self.values[name] + 0.1 * value

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = {name: value.clone() for name, value in state.items()}


def test_extras_are_resumed_and_go_with_the_run_not_with_refused_arms(tmp_path):
    """By ``train_step``: what it changes besides model and optimizer is in ``extra``."""

    def build(gate_z: float) -> tuple[Trial, Average, esper.BatchLoader]:
        model = esper.wrap(toy.host(), growing(gate_z=gate_z))
        average, source = Average(model), toy.loader()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)

        def train_step(batch):
            loss = toy.loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            return loss

        session = esper.Session(
            model,
            optimizer,
            train_step=train_step,
            evaluate=toy.evaluate,
            planned_steps=120,
            extra={"average": average},
            loader=source,
            policy=Script({1: [""]} if gate_z < 1e9 else {}),
        )
        trial = Trial(model, optimizer, session, 12)
        trial.session.step = lambda batch: session.after_step(batch, train_step(batch))
        return trial, average, source

    averages = []
    for gate_z in (2.33, 1e8, 1e9):  # adopted; refused; never offered
        trial, average, source = build(gate_z)
        toy.train_from(trial, source)
        averages.append(average)
    adopted, refused, bare = (tree_digest(average.values) for average in averages)
    assert refused == bare != adopted

    trial, average, source = build(2.33)
    for _ in range(3):
        for batch in source:
            trial.session.step(batch)
        trial.session.after_epoch()
    trial.session.save(tmp_path)
    trial, average, source = build(2.33)
    trial.session.load(tmp_path)
    toy.train_from(trial, source)
    assert tree_digest(average.values) == adopted


def test_a_checkpoint_of_format_6_is_gone_on_from(tmp_path):
    """Written after two epochs by the version before format 7, with two kept states."""
    with tarfile.open(Path(__file__).parent / "format_6.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    assert json.loads((tmp_path / "000002" / "manifest.json").read_bytes().splitlines()[0])["format"] == 6
    saved, source = store.read(tmp_path), toy.loader()
    trial = Recipe(growing(telemetry_rows=0), policy=Script({})).build(loader=source)
    trial.session.load(tmp_path)
    assert tree_digest(trial.run.snapshots.body()["model"]) == tree_digest(saved["body"]["model"])
    assert (trial.session.epoch, trial.session.step_count) == (2, 20)
    assert [entry["step"] for entry in trial.recovery.good] == [10, 20]
    for batch in list(toy.batches(2))[:3]:
        trial.session.step(batch)
    assert trial.session.rollback().accepted
    assert torch.equal(trial.model[0].weight, saved["body"]["model"]["0.weight"])
    toy.train_from(trial, source).session.save(tmp_path)
    assert store.read(tmp_path)["losses"][2]
