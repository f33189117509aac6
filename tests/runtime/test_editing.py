"""A loss that edits its batch trains on what it is handed, in the run and in arms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.runtime.state.batches import Editing, copy_of
from tests.few import few
from tests.runtime import replaying, toy
from tests.runtime.replaying import gains, trained
from tests.runtime.toy import Recipe, Script


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


def test_it_may_begin_within_a_window():
    def later(model, batch):
        return centring(model, batch) if batch["is_late"] else toy.loss(model, (batch["x"], batch["y"]))

    def flagged(epoch):
        for number, batch in enumerate(as_dicts(epoch)):
            yield batch | {"is_late": 10 * epoch + number >= 25}

    assert gains(trained(loss=later, batches=flagged)) == [0.0]


def through_numpy(model, batch):
    batch["x"].numpy()[:] *= 1.5
    return toy.loss(model, (batch["x"], batch["y"]))


def test_an_edit_that_leaves_no_trace_is_repeated_too():
    """Torch counts no version of what numpy writes. An arm that began with another loss would end the round."""
    trial = Recipe(toy.growing(layers=["0", "2"]), policy=Script({1: ["0", "2"]})).build(loss=through_numpy)
    for epoch in range(6):
        for batch in as_dicts(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    assert len(trial.events("arm_ended")) == 2
    assert gains(trained(loss=through_numpy, batches=as_dicts)) == [0.0]


@pytest.mark.parametrize(
    ("name", "trial"),
    few(
        [(name, trial) for name in LOSSES for trial in ("round", "live")],
        [("in place", "round")],
    ),
)
def test_a_run_that_was_cut_within_a_window_goes_on_with_the_same_batches(name, trial, tmp_path):
    def build(directory):
        recipe = Recipe(toy.growing(), epochs=8, policy=Script({1: [""]}, trial=trial))
        return recipe.build(loss=LOSSES[name], directory=directory)

    def train(made, epochs):
        for epoch in range(made.session.epoch, epochs):
            for batch in as_dicts(epoch):
                made.session.step(batch)
            made.session.after_epoch()
        return made

    whole = train(build(tmp_path / "whole"), 8)
    assert whole.events("arm_ended" if trial == "round" else "trial_ended")
    cut = train(build(tmp_path / "cut"), 3)
    assert cut.growth.window is not None
    resumed = build(tmp_path / "resumed")
    resumed.session.load(tmp_path / "cut" / "checkpoints")
    assert train(resumed, 8).digest() == whole.digest()


def test_an_error_on_a_batch_that_a_loop_of_ones_own_has_emptied_says_so():
    def train_step(batch):
        loss = popping(trial.model, batch)
        loss.backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        return loss.detach()

    trial = toy.Recipe(scheduler=None).build(loss=None, train_step=train_step)
    batch = next(as_dicts(0))
    loss = train_step(batch)
    with pytest.raises(KeyError) as caught:
        trial.session.after_step(batch, loss)
    (note,) = caught.value.__notes__
    assert note.endswith(
        "It must be as it was before the step: where train_step takes something out of it, hand train_step a copy."
    )


def reusing(buffer: Any) -> Any:
    """Batches that all lie in the same memory, one after the other; written behind the back of torch."""

    def batches(epoch):
        x, y = buffer
        for new_x, new_y in toy.batches(epoch):
            x[:], y[:] = new_x.numpy(), new_y.numpy()
            yield torch.from_numpy(x), torch.from_numpy(y)

    return batches


@pytest.mark.parametrize("trial", ["round", "live"])
def test_a_loader_may_fill_one_buffer_again_and_again(trial):
    """The run is that of batches in memory of their own, and its arms train on each of them."""
    buffer = np.zeros((toy.BATCH, toy.FEATURES), np.float32), np.zeros(toy.BATCH, np.int64)
    fresh = Recipe(toy.growing(), policy=Script({1: [""]}, trial=trial)).build()
    reused = Recipe(toy.growing(), policy=Script({1: [""]}, trial=trial)).build()
    for made, batches in ((fresh, toy.batches), (reused, reusing(buffer))):
        for epoch in range(8):
            for batch in batches(epoch):
                made.session.step(batch)
            made.session.after_epoch()
    kind = "arm_ended" if trial == "round" else "trial_ended"
    assert [one["curve"] for one in reused.events(kind)] == [one["curve"] for one in fresh.events(kind)] != []
    assert reused.digest() == fresh.digest()


def test_also_in_a_loop_of_ones_own():
    def build():
        def train_step(batch):
            loss = toy.loss(made.model, batch)
            loss.backward()
            made.optimizer.step()
            made.optimizer.zero_grad()
            return loss.detach()

        made = Recipe(toy.growing(), scheduler=None).build(loss=None, train_step=train_step)
        return made, train_step

    digests = []
    buffer = np.zeros((toy.BATCH, toy.FEATURES), np.float32), np.zeros(toy.BATCH, np.int64)
    for batches in (toy.batches, reusing(buffer)):
        made, train_step = build()
        for epoch in range(7):
            for batch in batches(epoch):
                made.session.after_step(batch, train_step(batch))
            made.session.after_epoch()
        assert made.events("arm_ended")
        digests.append(made.digest())
    assert digests[0] == digests[1]


def test_a_batch_that_cannot_be_copied_is_refused_at_the_first_step():
    def loss(model, batch):
        return toy.loss(model, next(batch))

    session = Recipe().build(loss=loss).session
    with pytest.raises(esper.ConfigError, match="a generator that cannot be copied"):
        session.step(one for one in toy.batches(0))
    assert session.step_count == 0


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


@pytest.mark.parametrize(
    ("tensor", "is_kept"),
    [
        (torch.rand(6, 10)[:, :-1], True),
        (torch.rand(6, 10).t(), True),
        (torch.rand(6, 3, 4, 4).to(memory_format=torch.channels_last), True),
        (torch.rand(6, 1).expand(6, 10), False),
        (torch.rand(6, 100)[:, :2], False),
        (torch.rand(10).unfold(0, 5, 1), False),
    ],
    ids=["a slice", "transposed", "channels last", "expanded", "a thin slice", "windows"],
)
def test_a_copy_has_the_same_strides_where_gaps_take_little(tensor, is_kept):
    """A slice that was made contiguous would round differently."""
    copied = copy_of(tensor)
    assert torch.equal(copied, tensor)
    assert (copied.stride() == tensor.stride()) is is_kept
    copied.zero_()
    assert tensor.any()


def test_what_is_one_tensor_in_a_batch_is_one_in_its_copy():
    ids = torch.arange(6)
    copied = copy_of({"input_ids": ids, "labels": ids, "model": (layer := torch.nn.Linear(2, 2))})
    assert copied["input_ids"] is copied["labels"]
    assert copied["model"] is layer
