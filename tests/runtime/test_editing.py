"""A loss that edits its batch trains on what it is handed, in the run and in arms."""

from typing import Any

import pytest
import torch
from torch import Tensor

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.runtime.state.batches import Editing, copy_of
from tests.runtime import replaying, toy
from tests.runtime.replaying import gains, reasons, trained


def as_dicts(epoch: int) -> Any:
    for x, y in toy.batches(epoch):
        yield {"x": x.clone(), "y": y.clone()}


def centring(model, batch):
    batch["x"].sub_(batch["x"].mean(0)).mul_(1.5)
    return toy.loss(model, (batch["x"], batch["y"]))


def popping(model, batch):
    labels = batch.pop("y")
    return toy.loss(model, (batch["x"], labels))


def replacing(model, batch):
    batch["x"] = batch["x"] * 1.5
    return toy.loss(model, (batch["x"], batch["y"]))


LOSSES = {"in place": centring, "taken out": popping, "replaced": replacing}


def plain(loss: Any) -> dict[str, Tensor]:
    model = replaying.host()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for epoch in range(7):
        for batch in as_dicts(epoch):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", LOSSES)
def test_the_run_ends_as_without_esper_and_arms_take_the_same_batches(name):
    trial = trained(loss=LOSSES[name], batches=as_dicts)
    assert gains(trial) == [0.0]
    ours, theirs = replaying.weights(trial), plain(LOSSES[name])
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_window_in_which_it_is_first_noticed_is_given_up():
    """The batch as it was is lost then; the next window is fine."""
    steps = iter(range(10**6))

    def later(model, batch):
        return centring(model, batch) if next(steps) >= 25 else toy.loss(model, (batch["x"], batch["y"]))

    trial = trained(loss=later, batches=as_dicts)
    (reason,) = reasons(trial)
    assert reason.startswith("a training step changed its batch in place")
    assert not gains(trial)


def test_batches_are_not_copied_where_nothing_edits_them():
    trial = trained(epochs=3)
    handed = list(toy.batches(3))
    for batch in handed:
        trial.session.step(batch)
    kept = trial.rounds.current.batches[-len(handed) :]
    assert all(one is other for one, other in zip(kept, handed, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loop_of_ones_own_is_refused(name):
    def train_step(batch):
        loss = LOSSES[name](trial.model, batch)
        loss.backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        return loss.detach()

    trial = toy.Recipe(scheduler=None).build(loss=None, train_step=train_step)
    batch = next(as_dicts(0))
    loss = train_step(copy_of(batch))
    with pytest.raises(esper.ConfigError, match=r"changes its batch in place.* hand the step a copy"):
        trial.session.after_step(batch, loss)


def test_a_train_step_that_the_session_calls_is_not():
    def train_step(batch):
        loss = centring(trial.model, batch)
        loss.backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        return loss.detach()

    trial = toy.Recipe(toy.growing(), scheduler=None).build(loss=None, train_step=train_step)
    for epoch in range(7):
        for batch in as_dicts(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    assert len(trial.events("arm_ended")) == 1


def test_a_blend_out_after_the_data_has_ended_takes_batches_as_they_were():
    seen: list[Tensor] = []

    def loss(model, batch):
        seen.append(batch["x"].clone())
        return centring(model, batch)

    trial = toy.Recipe(toy.growing(keep_looks=(0.95,))).build(loss=loss)
    for epoch in range(8):
        for batch in as_dicts(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    before = len(seen)
    last = [batch["x"] for batch in as_dicts(7)][-trial.run.ramp_steps :]
    trial.session.finish()
    assert len(seen) > before
    assert all(any(torch.equal(one, x) for x in last) for one in seen[before:])


class Sample:
    """A batch of a class of its own."""

    def __init__(self) -> None:
        self.x = torch.ones(3)


def test_objects_are_seen_into():
    batch, editing = Sample(), Editing()
    with editing.noticed([batch]):
        pass
    assert not editing.is_known
    with editing.noticed([batch]):
        batch.x.mul_(2)
    assert editing.is_known


def test_a_copy_has_memory_of_its_own_and_keeps_how_it_is_laid():
    batch = {"image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "names": ["a"], "leaf": None}
    copied = copy_of(batch)
    assert torch.equal(copied["image"], batch["image"])
    assert copied["image"].stride() == batch["image"].stride()
    copied["image"].zero_()
    copied["names"].append("b")
    assert batch["image"].any()
    assert batch["names"] == ["a"]
