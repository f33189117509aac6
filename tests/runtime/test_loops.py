"""Data and loops as people have them: loaders that draw, workers, streams, states, schedulers of every kind."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, lr_scheduler
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

import esper
from tests.few import few
from tests.runtime import toy
from tests.runtime.replaying import Noops, gains, reasons
from tests.runtime.toy import Script, Trial, growing, timeless

SAMPLES = TensorDataset(toy.DATA.x, toy.DATA.y)

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata itself calls it


class Noisy(Dataset):
    """Augments samples by numbers of the global streams."""

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = SAMPLES[index]
        return x + 0.1 * torch.randn(toy.FEATURES) + np.random.normal(0, 0.05) + random.gauss(0, 0.05), y


class Stream(IterableDataset):
    """Goes on where it stood; each of several workers takes its share."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.position < len(SAMPLES):
            self.position += 1
            if (self.position - 1) % count == number:
                yield SAMPLES[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


WORKERS = {"num_workers": 2, "persistent_workers": True}

LOADERS: dict[str, Callable[[], Any]] = {
    "a DataLoader that shuffles": lambda: DataLoader(SAMPLES, toy.BATCH, shuffle=True),
    "with workers": lambda: DataLoader(SAMPLES, toy.BATCH, shuffle=True, **WORKERS),
    "that augments": lambda: DataLoader(Noisy(), toy.BATCH, shuffle=True),
    "with workers that augment": lambda: DataLoader(Noisy(), toy.BATCH, shuffle=True, **WORKERS),
    "over a stream": lambda: DataLoader(Stream(), toy.BATCH),
}

STATEFUL: dict[str, Callable[[], Any]] = {
    "of samples": lambda: StatefulDataLoader(SAMPLES, toy.BATCH, shuffle=True),
    "of samples, with workers": lambda: StatefulDataLoader(SAMPLES, toy.BATCH, shuffle=True, **WORKERS),
    "of a stream": lambda: StatefulDataLoader(Stream(), toy.BATCH),
    "of a stream, with workers": lambda: StatefulDataLoader(Stream(), toy.BATCH, **WORKERS),
}


def build(policy: Any, *, config: dict[str, Any] | None = None, **options: Any) -> Trial:
    """A host that draws from the global stream too, for its dropout."""
    model = esper.wrap(toy.host(dropout=0.2), growing(**{"keep_looks": (0.95,)} | (config or {})))
    optimizer = AdamW(model.parameters(), lr=0.03)
    given = {"loss": toy.loss} if "train_step" not in options else {}
    arguments = given | {"evaluate": toy.evaluate, "planned_steps": 120, "policy": policy} | options
    return Trial(model, optimizer, esper.Session(model, optimizer, **arguments), 12, options.get("loader"))


def seed_all() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)


def train(trial: Trial, loader: Any, epochs: int, stop: int | None = None) -> Trial:
    for _ in range(trial.session.epoch, epochs):
        for batch in loader:
            trial.session.step(batch)
            if trial.session.step_count == stop:
                return trial
        trial.session.after_epoch()
    return trial


# Loaders that draw from the global streams


@pytest.mark.parametrize("kind", few(LOADERS, ["that augments", "with workers that augment", "over a stream"]))
def test_arms_end_where_the_run_does_and_that_where_it_would_without_esper(kind):
    trial = build(Noops({1: [""]}, blueprint="noop"))
    seed_all()
    train(trial, LOADERS[kind](), 6)
    assert gains(trial) == [0.0]

    bare = toy.host(dropout=0.2)
    optimizer = AdamW(bare.parameters(), lr=0.03)
    seed_all()
    loader = LOADERS[kind]()
    for _ in range(6):
        for batch in loader:
            optimizer.zero_grad()
            toy.loss(bare, batch).backward()
            optimizer.step()
    ours = esper.host_state_dict(trial.model)
    assert all(torch.equal(ours[name], tensor) for name, tensor in bare.state_dict().items())


def test_a_run_with_such_a_loader_resumes_to_the_byte_within_the_window_of_a_round(tmp_path):
    """Also what had been drawn before the first step of an epoch that an arm is yet to take."""
    loader = LOADERS["a DataLoader that shuffles"]
    whole = build(Script({1: [""]}))
    torch.manual_seed(7)
    train(whole, loader(), 8)
    assert whole.events("round_ended")[0]["adopted"] is not None
    cut = build(Script({1: [""]}))
    torch.manual_seed(7)
    train(cut, loader(), 4).session.save(tmp_path)
    resumed = build(Script({1: [""]}))
    resumed.session.load(tmp_path)
    train(resumed, loader(), 8)
    assert (resumed.digest(), timeless(resumed.session.events)) == (whole.digest(), timeless(whole.session.events))


@pytest.mark.parametrize("has_own_stream", [True, False])
def test_in_a_loop_of_ones_own_the_loader_needs_a_stream_of_its_own(has_own_stream):
    """What was drawn before a step that nobody announced is not known; the reason says what to do."""

    def train_step(batch):
        loss = toy.loss(trial.model, batch)
        trial.optimizer.zero_grad()
        loss.backward()
        trial.optimizer.step()
        return loss

    trial = build(Noops({1: [""]}, blueprint="noop"), train_step=train_step)
    generator = torch.Generator().manual_seed(1) if has_own_stream else None
    loader = DataLoader(SAMPLES, toy.BATCH, shuffle=True, generator=generator)
    for _ in range(6):
        for batch in loader:
            trial.session.after_step(batch, train_step(batch))
        trial.session.after_epoch()
    if has_own_stream:
        assert gains(trial) == [0.0]
    else:
        assert not gains(trial)
        assert "give it generator=torch.Generator(), or let session.step(batch) make the steps" in reasons(trial)[0]


@pytest.mark.parametrize("is_in_extra", [True, False])
def test_a_step_that_counts_batches_is_followed_where_its_count_is_known(is_in_extra):
    class Count:
        batches = 0

        def state_dict(self) -> dict[str, int]:
            return {"batches": self.batches}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.batches = state["batches"]

    count = Count()

    def train_step(batch):
        loss = toy.loss(trial.model, batch)
        (loss / 3).backward()
        count.batches += 1
        if count.batches % 3 == 0:
            trial.optimizer.step()
            trial.optimizer.zero_grad()
        return loss

    extra = {"count": count} if is_in_extra else {}
    trial = build(Noops({1: [""]}, blueprint="noop"), train_step=train_step, extra=extra)
    trial.train(6)
    if is_in_extra:
        assert gains(trial) == [0.0]
    else:
        assert not gains(trial)
        assert "train_step counts batches by something that no step is given anew" in reasons(trial)[0]


# Streams


def test_a_stream_without_epochs_grows_at_boundaries_of_its_own():
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from DataLoader(SAMPLES, toy.BATCH, shuffle=True)

    trial = build(Script({0: [""]}), config={"boundary_steps": 10})
    torch.manual_seed(7)
    for _, batch in zip(range(80), endless(), strict=False):
        trial.session.step(batch)
    assert trial.events("round_ended")[0]["adopted"] is not None
    assert [event["step"] for event in trial.events("epoch")] == list(range(10, 81, 10))


@pytest.mark.parametrize("loader", [(batch for batch in ()), LOADERS["a DataLoader that shuffles"]()])
def test_a_loader_without_a_state_is_refused_with_what_follows_from_leaving_it_out(loader):
    with pytest.raises(
        esper.ConfigError, match=r"without a state_dict\. Leave it out: a run then resumes where an epoch"
    ):
        build(Script({}), loader=loader)


@pytest.mark.parametrize("kind", few(STATEFUL, ["of samples, with workers", "of a stream"]))
def test_a_run_resumes_to_the_byte_where_a_stateful_loader_stood(kind, tmp_path):
    """In an epoch, at its last batch, and in the window of a round."""

    def started() -> Trial:
        torch.manual_seed(7)
        return build(Script({1: [""]}), loader=STATEFUL[kind]())

    whole = started()
    train(whole, whole.loader, 7)
    assert whole.events("round_ended")[0]["adopted"] is not None
    for step in [34] if "workers" in kind else [7, 10, 34]:
        cut = started()
        train(cut, cut.loader, 7, step).session.save(tmp_path)
        resumed = started()
        torch.rand(5)
        resumed.session.load(tmp_path)
        train(resumed, resumed.loader, 7)
        assert (resumed.digest(), timeless(resumed.session.events)) == (whole.digest(), timeless(whole.session.events))


def in_a_directory(folder: Path) -> Trial:
    torch.manual_seed(7)
    loader = STATEFUL["of samples"]()
    return build(Script({0: [""]}), config={"boundary_steps": 7}, loader=loader, directory=folder)


def killed(folder: Path) -> None:
    trial = in_a_directory(folder)
    train(trial, trial.loader, 7, 39)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the process that is killed")
def test_a_killed_run_resumes_to_the_byte_in_the_middle_of_an_epoch(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "cut",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole = in_a_directory(tmp_path / "whole")
    train(whole, whole.loader, 7)
    resumed = in_a_directory(tmp_path / "cut")
    torch.rand(5)
    resumed.session.load(tmp_path / "cut" / "checkpoints")
    assert resumed.session.step_count == 35
    train(resumed, resumed.loader, 7)
    assert resumed.digest() == whole.digest()
    assert timeless(resumed.session.events) == timeless(whole.session.events)


# Schedulers and optimizers

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda one: lr_scheduler.LambdaLR(one, lambda step: 0.99**step),
    "MultiplicativeLR": lambda one: lr_scheduler.MultiplicativeLR(one, lambda step: 0.99),
    "StepLR": lambda one: lr_scheduler.StepLR(one, 7),
    "MultiStepLR": lambda one: lr_scheduler.MultiStepLR(one, [5, 25, 30]),
    "ConstantLR": lambda one: lr_scheduler.ConstantLR(one, 0.5, 25),
    "LinearLR": lambda one: lr_scheduler.LinearLR(one, 0.1, 1.0, 30),
    "ExponentialLR": lambda one: lr_scheduler.ExponentialLR(one, 0.99),
    "PolynomialLR": lambda one: lr_scheduler.PolynomialLR(one, 60),
    "CosineAnnealingLR": lambda one: lr_scheduler.CosineAnnealingLR(one, 60),
    "CosineAnnealingWarmRestarts": lambda one: lr_scheduler.CosineAnnealingWarmRestarts(one, 15),
    "OneCycleLR": lambda one: lr_scheduler.OneCycleLR(one, 0.1, 60),
    "CyclicLR": lambda one: lr_scheduler.CyclicLR(one, 0.01, 0.1, 10),
    "CyclicLR with a function": lambda one: lr_scheduler.CyclicLR(one, 0.01, 0.1, 10, scale_fn=lambda x: 0.5**x),
    "SequentialLR": lambda one: lr_scheduler.SequentialLR(
        one, [lr_scheduler.LinearLR(one, 0.1, 1.0, 10), lr_scheduler.ExponentialLR(one, 0.98)], [10]
    ),
    "ChainedScheduler": lambda one: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(one, 0.1, 1.0, 10), lr_scheduler.ExponentialLR(one, 0.99)]
    ),
    "SWALR": lambda one: SWALR(one, 0.01, anneal_epochs=10),
    "ReduceLROnPlateau": lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=0),
}


@pytest.mark.parametrize("kind", few(list(SCHEDULERS), ["OneCycleLR", "SequentialLR", "SWALR"]))
def test_schedulers_of_every_kind_of_torch_are_followed_by_arms_and_resumed(kind, tmp_path):
    def started() -> Trial:
        model = esper.wrap(toy.host(dropout=0.1), growing(layers=["0"], round_fraction=0.25))
        optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
        scheduler = SCHEDULERS[kind](optimizer)
        session = esper.Session(
            model,
            optimizer,
            loss=toy.loss,
            evaluate=toy.evaluate,
            planned_steps=60,
            scheduler=scheduler,
            scheduler_every="epoch" if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else "step",
            policy=Noops({1: ["0"]}, blueprint="noop"),
        )
        return Trial(model, optimizer, session, 6)

    whole = started().train(3)
    assert gains(whole) == [0.0]
    started().train(2).session.save(tmp_path)
    resumed = started()
    resumed.session.load(tmp_path)
    assert resumed.train(1).digest() == whole.digest()


@pytest.mark.parametrize("steps", [1, 20])
def test_an_optimizer_that_needs_a_closure_is_refused_by_name(steps):
    model = esper.wrap(toy.host(), growing())
    optimizer = LBFGS(model.parameters(), max_iter=steps)
    with pytest.raises(esper.ConfigError, match=r"LBFGS evaluates the model inside its step \(closure\)"):
        esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)


def test_where_several_optimizers_share_a_model_and_one_is_given_all_are_asked_for():
    model = esper.wrap(toy.host(), growing(layers=["0", "2"]))
    first: nn.Module = model[0]
    with pytest.raises(esper.ConfigError, match=r"grafts of '2'.*give Session all: optimizer=\[muon, adamw\]"):
        esper.Session(model, AdamW(first.parameters()), loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)
