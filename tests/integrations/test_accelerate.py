"""Beside Accelerate: the same bytes as without Esper, arms that gather gradients as the run does, exact resuming."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import esper
from esper.contracts.lifecycle import State
from esper.integrations.accelerate import Accumulation, register_session
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Script, Trial, growing, timeless

BATCHES = 10
"""Of an epoch: three do not divide them, so that the end of an epoch ends an accumulation."""

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata itself calls it


@pytest.fixture(autouse=True)
def _forgets():
    """Accelerate keeps the settings of the first accelerator of a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2))
        self.head = nn.Linear(16, toy.CLASSES)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 1, 2, 2)).flatten(1))


class Block(nn.Module):
    """Of its own: in eval mode torch has another kernel for its encoder layers, until something has grown there."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.attention, self.mix = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, x):
        query, key, value = self.attention(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.mix(F.scaled_dot_product_attention(query, key, value))
        return x + self.mlp(self.norms[1](x))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, toy.CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x.unsqueeze(-1))).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "an MLP": (lambda: toy.host(dropout=0.2), ["", "0"]),
    "a CNN": (Image, ["body.0", "head"]),
    "a transformer": (Text, ["blocks.0", "blocks"]),
}


@dataclass
class Loop:
    """What a caller of Accelerate writes."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    scheduler: Any
    loader: Any

    def train_step(self, batch):
        x, y = batch
        with self.accelerator.accumulate(self.model):
            loss = F.cross_entropy(self.model(x), y)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return loss.detach()


def loop(
    accelerator: Accelerator, name: str = "an MLP", config: esper.GrowthConfig | None = None, kind: Any = DataLoader
) -> Loop:
    """Prepared; wrapped if there is a configuration."""
    torch.manual_seed(2)
    model = MODELS[name][0]()
    if config is not None:
        model = esper.wrap(model, config, toy.DATA.x[:4])
    optimizer = AdamW(model.parameters(), lr=0.03)
    scheduler = OneCycleLR(optimizer, 0.03, 60)
    torch.manual_seed(3)
    loader = kind(TensorDataset(toy.DATA.x, toy.DATA.y), 16, shuffle=True)
    return Loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader))


def accelerator(precision: str = "no", accumulate: int = 3, **options: Any) -> Accelerator:
    return Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate, **options)


def session_of(one: Loop, **options: Any) -> Trial:
    arguments: dict[str, Any] = {
        "train_step": one.train_step,
        "evaluate": toy.evaluate,
        "planned_steps": 12 * BATCHES,
        "scheduler": one.scheduler,
        "scaler": one.accelerator.scaler,
        "extra": {"accumulation": Accumulation(one.accelerator)},
        "policy": Script({}),
    }
    return Trial(one.model, one.optimizer, esper.Session(one.model, one.optimizer, **arguments | options), 12)


def train(trial: Trial, one: Loop, epochs: int, stop: int | None = None, *, by_hand: bool = False) -> Trial:
    for _ in range(trial.session.epoch, epochs):
        for batch in one.loader:
            if by_hand:
                trial.session.after_step(batch, one.train_step(batch))
            else:
                trial.session.step(batch)
            if trial.session.step_count == stop:
                return trial
        trial.session.after_epoch()
    return trial


class Noops(Script):
    """Germinates grafts that compute nothing: their arms must end exactly where the run does."""

    def command(self, place):
        return replace(super().command(place), settings={})


def bare(one: Loop, epochs: int) -> dict[str, Any]:
    for _ in range(epochs):
        for batch in one.loader:
            one.train_step(batch)
    return dict(one.model.state_dict())


def with_scaler() -> Accelerator:
    """Half precision as on a GPU: on a CPU Accelerate itself leaves it out."""
    made = accelerator("fp16")
    made.native_amp, made.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5)
    return made


KINDS: dict[str, Callable[[], Accelerator]] = {
    "float32": accelerator,
    "bfloat16": lambda: accelerator("bf16"),
    "a gradient scaler": with_scaler,
}


@pytest.mark.parametrize(("name", "kind"), few(product(MODELS, KINDS), list(zip(MODELS, KINDS, strict=True))))
def test_a_run_that_refuses_ends_as_without_esper_and_its_arms_end_where_it_does(name, kind):
    places = MODELS[name][1]
    one = loop(KINDS[kind](), name, growing(layers=places, round_fraction=0.25))
    trial = train(session_of(one, policy=Noops({1: [places[0]]}, blueprint="noop")), one, 5)
    theirs = bare(loop(KINDS[kind](), name), 5)
    ours = esper.host_state_dict(one.model)
    assert [key for key in theirs if not torch.equal(theirs[key], ours[key])] == []
    assert [event["gain"] for event in trial.events("arm_ended")] == [0.0]


@pytest.mark.parametrize("accumulate", few([1, 4], [4]))
def test_arms_end_where_the_run_does_in_a_loop_of_ones_own(accumulate):
    """The round ends within an epoch, with gradients that go on accumulating."""
    one = loop(accelerator(accumulate=accumulate), "a CNN", growing(layers=["head"], round_fraction=0.2))
    trial = train(session_of(one, policy=Noops({1: ["head"]}, blueprint="noop")), one, 5, by_hand=True)
    theirs = bare(loop(accelerator(accumulate=accumulate), "a CNN"), 5)
    ours = esper.host_state_dict(one.model)
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert [event["gain"] for event in trial.events("arm_ended")] == [0.0]


def test_a_graft_is_adopted_in_mixed_precision_and_exported_without_it():
    one = loop(accelerator("bf16", accumulate=1), config=growing(keep_looks=(0.95,)))
    trial = train(session_of(one, policy=Script({1: [""]})), one, 8)
    assert trial.events("round_ended")[0]["adopted"] is not None
    assert trial.state() is State.FINE_TUNING
    trial.session.finish()
    plain = esper.export(one.model).eval()
    assert "forward" not in vars(plain)
    torch.testing.assert_close(plain(toy.DATA.held_x), one.model.eval()(toy.DATA.held_x), atol=0.1, rtol=0.05)


def test_accumulation_that_nobody_follows_is_refused_with_the_remedy():
    one = loop(accelerator(), config=growing())
    with pytest.raises(esper.ConfigError, match=r"gradients of 3 batches.*Accumulation\(accelerator\)"):
        session_of(one, extra=None)
    session_of(loop(accelerator(accumulate=1), config=growing()), extra=None)


# In which order


def test_a_model_that_was_prepared_first_is_wrapped_where_no_precision_was_set():
    made = accelerator(accumulate=1)
    model = esper.wrap(made.prepare(toy.host()), growing())
    optimizer = made.prepare(AdamW(model.parameters(), lr=0.03))

    def train_step(batch):
        loss = toy.loss(model, batch)
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    session = esper.Session(model, optimizer, train_step=train_step, evaluate=toy.evaluate, planned_steps=120)
    assert Trial(model, optimizer, session, 2).train(1).session.step_count == 10


@pytest.mark.parametrize("layers", [[""], ["0"]])
def test_a_model_that_was_prepared_in_mixed_precision_is_refused_with_the_remedy(layers):
    with pytest.raises(esper.ConfigError, match=r"forward of its own.*call esper\.wrap before"):
        esper.wrap(accelerator("bf16").prepare(toy.host()), growing(layers=layers))


# Saving and loading


STATEFUL = DataLoaderConfiguration(use_stateful_dataloader=True)


def resumable(**options: Any) -> tuple[Loop, Trial]:
    one = loop(accelerator(dataloader_config=STATEFUL), config=growing(keep_looks=(0.95,)), kind=StatefulDataLoader)
    return one, session_of(one, policy=Script({1: [""]}), loader=one.loader, **options)


@pytest.fixture(scope="module")
def whole():
    """Where a run ends that was never cut, and what it told."""
    one, trial = resumable()
    train(trial, one, 8)
    assert trial.events("round_ended")[0]["adopted"] is not None
    return trial.digest(), timeless(trial.session.events)


@pytest.mark.parametrize(
    ("by", "step"),
    few(
        [*(("save_state", step) for step in (7, 10, 34, 72)), ("session.save", 34)],
        [("save_state", 72), ("session.save", 34)],
    ),
)
def test_a_run_resumes_to_the_byte(by, step, whole, tmp_path):
    """In an epoch, at its end, in the window of a round, and once something has grown."""
    one, trial = resumable()
    register_session(one.accelerator, trial.session)
    train(trial, one, step // BATCHES if step % BATCHES == 0 else 8, step if step % BATCHES else None)
    if by == "save_state":
        one.accelerator.save_state(tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
    else:
        trial.session.save(tmp_path)
    again, resumed = resumable()
    register_session(again.accelerator, resumed.session)
    torch.rand(5)
    if by == "save_state":
        again.accelerator.load_state(tmp_path)
    else:
        resumed.session.load(tmp_path)
    assert resumed.session.step_count == step
    train(resumed, again, 8)
    assert (resumed.digest(), timeless(resumed.session.events)) == whole


def test_accelerate_goes_on_saving_other_models_itself(tmp_path):
    one = loop(accelerator(), config=growing())
    other = one.accelerator.prepare(nn.Linear(2, 2))
    trial = session_of(one)
    register_session(one.accelerator, trial.session)
    train(trial, one, 1)
    one.accelerator.save_state(tmp_path)
    saved = other.weight.detach().clone()
    with torch.no_grad():
        other.weight.zero_()
    train(trial, one, 2)
    one.accelerator.load_state(tmp_path)
    assert torch.equal(other.weight, saved)
    assert trial.session.step_count == BATCHES


def test_a_folder_without_a_session_is_refused_and_nothing_was_loaded(tmp_path):
    one = loop(accelerator(), config=growing())
    one.accelerator.save_state(tmp_path)
    trial = session_of(one)
    register_session(one.accelerator, trial.session)
    train(trial, one, 1)
    before = trial.digest()
    with pytest.raises(esper.CheckpointError, match="holds no session"):
        one.accelerator.load_state(tmp_path)
    assert trial.digest() == before


def test_a_folder_that_was_not_written_to_its_end_is_refused_and_nothing_was_loaded(tmp_path):
    one = loop(accelerator(), config=growing())
    trial = session_of(one)
    register_session(one.accelerator, trial.session)
    one.accelerator.save_state(tmp_path)
    (tmp_path / "custom_checkpoint_0.pkl").unlink()
    train(trial, one, 1)
    before = trial.digest()
    with pytest.raises(esper.CheckpointError, match="not written to its end"):
        one.accelerator.load_state(tmp_path)
    assert trial.digest() == before


def test_what_is_no_accelerator_or_of_another_model_is_refused():
    one = loop(accelerator(), config=growing())
    trial = session_of(one)
    with pytest.raises(esper.ConfigError, match=r"An accelerate\.Accelerator is needed"):
        Accumulation(one.model)
    with pytest.raises(esper.ConfigError, match="takes a session"):
        register_session(one.accelerator, one.model)
    one.accelerator.free_memory()
    with pytest.raises(esper.ConfigError, match="has not prepared the session's model"):
        register_session(one.accelerator, trial.session)


def test_a_loader_that_accelerate_has_prepared_without_a_state_is_refused_with_the_remedy():
    one = loop(accelerator(), config=growing())
    with pytest.raises(esper.ConfigError, match="use_stateful_dataloader=True"):
        session_of(one, loader=one.loader)


# Ranks


def rank_of_two(rank: int, port: int, told: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    AcceleratorState._reset_state(True)
    one = loop(accelerator(accumulate=2), config=growing())
    session = session_of(one, policy=Script({1: [""]}), planned_steps=6 * BATCHES, rank_timeout=600).session
    register_session(one.accelerator, session)
    for _ in range(12):
        for batch in one.loader:
            session.step(batch)
        session.after_epoch()
    one.accelerator.save_state(told.parent / "saved")
    session.finish()
    moved = [(event["step"], event["target"]) for event in session.events if event["event"] == "transition"]
    weights = [parameter.tolist() for parameter in session._run.model.parameters()]
    told.write_text(json.dumps({"moved": moved, "weights": weights}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the ranks")
def test_two_ranks_try_a_graft_and_stay_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=rank_of_two, args=(rank, port, tmp_path / str(rank))) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    assert "EVALUATING" in [target for _, target in first["moved"]]
    assert (tmp_path / "saved" / "esper" / "rank1").is_dir()
