"""Runs that are interrupted, told out of order or told wrongly: they go on, and can be saved."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import esper
from esper.contracts.lifecycle import State
from esper.runtime import emergency
from esper.runtime.commands import seeds as commanded
from tests.faults.conftest import MISTAKE
from tests.faults.sameness import bits, refused
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

X = toy.DATA.x[:5]
BATCH = next(toy.batches(0))


@pytest.fixture(autouse=True)
def _counted(record_property):
    record_property("faults", MISTAKE)


def live(**session: Any) -> Trial:
    """A run in which a graft is being blended in."""
    trial = Recipe(growing(trial="live"), policy=Script({1: [""]}, trial="live")).build(**session)
    return trial.train_until(lambda trial: trial.state() is State.GRAFTING)


def test_eval_in_the_middle_of_grafting_changes_nothing_of_the_run():
    first, second = live(), live()
    for trial in (first, second):
        if trial is second:
            trial.model.eval()
            with torch.no_grad():
                trial.model(X)
            trial.model.train()
        trial.session.step(BATCH)
    assert first.digest() == second.digest()


class Stop:
    """Raises an interruption at one call of many, once."""

    def __init__(self, error: type[BaseException], at: int, where: str) -> None:
        self.error, self.left, self.where = error, at, where

    def reached(self, where: str) -> None:
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                raise self.error(f"at {where}")


def stopped(recipe: Recipe, stop: Stop) -> tuple[Trial, int]:
    """A run that is gone on with after every interruption, and how many there were."""
    trial, count = _built(recipe, stop), 0
    while trial.session.epoch < trial.epochs:
        for batch in list(toy.batches(trial.session.epoch))[trial.session.step_count % toy.STEPS_PER_EPOCH :]:
            steps = trial.session.step_count
            while trial.session.step_count == steps:
                try:
                    trial.session.step(batch)
                except stop.error:
                    count += 1
        try:
            trial.session.after_epoch()
        except stop.error:
            count += 1
    return trial, count


def _built(recipe: Recipe, stop: Stop) -> Trial:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        stop.reached("before the forward pass")
        value = toy.loss(model, batch)
        stop.reached("after the forward pass")
        return value

    def evaluate(model: nn.Module) -> esper.Evaluation:
        stop.reached("evaluate")
        return toy.evaluate(model)

    return recipe.build(loss=loss, evaluate=evaluate)


@pytest.mark.parametrize(
    ("error", "where", "at"),
    [
        (KeyboardInterrupt, "before the forward pass", 5),
        (RuntimeError, "before the forward pass", 60),
        pytest.param(KeyboardInterrupt, "before the forward pass", 70, marks=pytest.mark.long),
        (RuntimeError, "after the forward pass", 9),
        (KeyboardInterrupt, "after the forward pass", 40),
        pytest.param(KeyboardInterrupt, "after the forward pass", 65, marks=pytest.mark.long),
        pytest.param(KeyboardInterrupt, "evaluate", 3, marks=pytest.mark.long),
        (RuntimeError, "evaluate", 5),
        (KeyboardInterrupt, "evaluate", 7),
        pytest.param(KeyboardInterrupt, "evaluate", 10, marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_interrupted_goes_on_and_can_be_saved(error, where, at, tmp_path):
    recipe = Recipe(epochs=6)
    trial, count = stopped(recipe, Stop(error, at, where))
    assert count == 1
    assert trial.session.epoch == 6
    trial.session.save(tmp_path)
    again = recipe.build()
    again.session.load(tmp_path)
    assert again.digest() == trial.digest()
    for one in (trial, again):
        one.session.finish()
    assert bits(dict(esper.export(again.model).state_dict())) == bits(dict(esper.export(trial.model).state_dict()))


def by_hand(stop: Stop | None = None) -> tuple[Trial, Callable[[Any], Tensor]]:
    """A run with a training step of its own, which may be interrupted at three moments."""

    def train_step(batch: Any) -> Tensor:
        value = toy.loss(trial[0].model, batch)
        value.backward()
        if stop is not None:
            stop.reached("after backward")
        trial[0].optimizer.step()
        if stop is not None:
            stop.reached("after the step")
        trial[0].optimizer.zero_grad()
        return value.detach()

    trial: list[Trial] = []
    recipe = Recipe(epochs=6, scheduler=None)
    model = esper.wrap(recipe.model(), recipe.config)
    optimizer = recipe.optimizer(model.parameters())
    trial.append(Trial(model, optimizer, None, recipe.epochs))
    trial[0].session = esper.Session(
        model, optimizer, train_step=train_step, evaluate=toy.evaluate, planned_steps=60, policy=recipe.policy
    )
    return trial[0], train_step


@pytest.mark.parametrize(
    ("error", "where", "at"),
    [
        (KeyboardInterrupt, "after backward", 1),
        (ValueError, "after backward", 25),
        (KeyboardInterrupt, "after backward", 75),
        (ValueError, "after the step", 1),
        (KeyboardInterrupt, "after the step", 25),
        (KeyboardInterrupt, "after the step", 75),
    ],
)
def test_a_training_step_of_ones_own_that_was_interrupted_can_be_made_again(error, where, at, tmp_path):
    trial, _ = by_hand(stop := Stop(error, at, where))
    count = 0
    for epoch in range(6):
        for batch in toy.batches(epoch):
            steps = trial.session.step_count
            while trial.session.step_count == steps:
                try:
                    trial.session.step(batch)
                except error:
                    count += 1
                    trial.optimizer.zero_grad()
                    trial.session.save(tmp_path)
        trial.session.after_epoch()
    trial.session.finish()
    assert count == 1
    assert stop.left <= 0
    assert esper.export(trial.model)(X).isfinite().all()


ORDERS: dict[str, Callable[[esper.Session, Callable[[Any], Tensor]], Any]] = {
    "told twice": lambda session, step: [session.after_step(BATCH, value) for value in [step(BATCH)] * 2],
    "told without a step": lambda session, step: session.after_step(BATCH, 0.5),
    "told with a loss that has its graph": lambda session, step: session.after_step(
        BATCH, step(BATCH) + torch.zeros((), requires_grad=True)
    ),
    "stepped and never told": lambda session, step: step(BATCH),
    "an epoch of nothing": lambda session, step: session.after_epoch(),
    "two epochs of nothing": lambda session, step: [session.after_epoch() for _ in range(2)],
    "both ways mixed": lambda session, step: (session.step(BATCH), session.after_step(BATCH, step(BATCH))),
    "a batch of one": lambda session, step: session.step((BATCH[0][:1], BATCH[1][:1])),
    "a batch in a list": lambda session, step: session.step(list(BATCH)),
    "more steps than planned": lambda session, step: [session.step(BATCH) for _ in range(9)],
}


@pytest.mark.parametrize("name", ORDERS)
def test_steps_in_an_odd_order_leave_a_run_that_goes_on(name):
    trial, train_step = by_hand()
    ORDERS[name](trial.session, train_step)
    for epoch in range(trial.session.epoch, 4):
        for batch in toy.batches(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    trial.session.finish()
    assert esper.export(trial.model)(X).isfinite().all()


TOLD: dict[str, tuple[Callable[[esper.Session], Any], tuple[str, ...]]] = {
    "a loss of text": (lambda session: session.after_step(BATCH, "0.5"), ("after_step", "'0.5'", "one number")),
    "no loss": (lambda session: session.after_step(BATCH, None), ("after_step", "None", "one number")),
    "several losses": (lambda session: session.after_step(BATCH, torch.ones(3)), ("after_step", "(3,)", "one number")),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_loss_that_is_told_wrongly_is_refused(name):
    tell, named = TOLD[name]
    trial, _ = by_hand()
    with refused(trial.model, *named):
        tell(trial.session)
    assert trial.session.step_count == 0


def test_a_training_step_that_gives_nothing_is_refused():
    model = esper.wrap(toy.host(), growing())
    optimizer = AdamW(model.parameters())
    session = esper.Session(model, optimizer, train_step=lambda batch: None, evaluate=toy.evaluate, planned_steps=60)
    with refused(model, "train_step", "None", "one number"):
        session.step(BATCH)


@pytest.fixture
def _ctrl_c_raises():
    """Also in a process whose tests are run from elsewhere, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_raises")
@pytest.mark.parametrize("is_disturbed", [False, True], ids=["waits", "control"])
def test_ctrl_c_waits_until_what_belongs_together_is_done(is_disturbed, monkeypatch):
    """Without waiting, seeds of a round that ends rest already while the books have them on trial: the run is lost."""
    trial = Recipe().build().train_until(lambda trial: trial.rounds.current is not None and trial.recovery.good)
    book = commanded.Seeds._book

    def _book(*told: Any) -> None:
        monkeypatch.setattr(commanded.Seeds, "_book", book)
        signal.raise_signal(signal.SIGINT)
        book(*told)

    monkeypatch.setattr(commanded.Seeds, "_book", _book)
    if is_disturbed:
        monkeypatch.setattr(commanded, "undisturbed", nullcontext)
        monkeypatch.setattr(emergency, "undisturbed", nullcontext)
    with pytest.raises(KeyboardInterrupt):
        trial.session.rollback()
    trial.session.rollback()
    assert not trial.run.places[""].arena.grafts
    assert bool(trial.run.books.alive) == is_disturbed
    if not is_disturbed:
        trial.train(5)


@pytest.mark.parametrize("kind", ["round", "live"])
def test_a_run_whose_arms_were_interrupted_can_go_back(kind):
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if trial and trial[0].run.arm is not None and not is_interrupted:
            is_interrupted.append(True)
            raise KeyboardInterrupt
        return toy.loss(model, batch)

    trial: list[Trial] = []
    is_interrupted: list[bool] = []
    trial.append(Recipe(growing(trial=kind), policy=Script({1: [""]}, trial=kind)).build(loss=loss))
    with pytest.raises(KeyboardInterrupt):
        trial[0].train()
    assert trial[0].run.arm is not None
    trial[0].session.rollback()
    assert trial[0].run.arm is None
    assert not trial[0].run.books.alive
    assert not trial[0].growth.is_due
    trial[0].train()
    trial[0].session.finish()
    assert trial[0].session.epoch == trial[0].epochs
