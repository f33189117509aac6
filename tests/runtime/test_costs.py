"""What a step costs is found out in the step itself: nothing is trained beside it, and all of it is booked."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import esper
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

SIZES = (16, 5, 9, 12, 7, 3, 14, 2, 11, 8)


def changing(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of which nearly every one has a size of its own."""
    for step, (x, y) in enumerate(toy.batches(epoch)):
        size = 1 + (SIZES[step] + 3 * epoch) % 16
        yield x[:size], y[:size]


class Counted:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return toy.loss(model, batch)


def train(trial: Trial, epochs: int = 12) -> Trial:
    for epoch in range(trial.session.epoch, epochs):
        for batch in changing(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    return trial


def test_each_batch_is_trained_on_once_whatever_its_shape():
    loss = Counted()
    trial = train(Recipe(policy=Script({})).build(loss=loss))
    assert trial.session.step_count == 120
    assert loss.calls == 120 + toy.DRY_RUN


def test_nor_do_arms_train_on_more_than_their_steps():
    loss = Counted()
    trial = train(Recipe().build(loss=loss), 6)
    (arm,) = trial.events("arm_ended")
    assert loss.calls == toy.DRY_RUN + trial.session.step_count + arm["steps"]


def test_changing_shapes_are_booked_to_the_last_flop():
    trial = train(Recipe(policy=Script({})).build())
    host, expected = toy.host(), FlopCounterMode(display=False)
    flops = 0
    for epoch in range(12):
        for batch in changing(epoch):
            with expected:
                toy.loss(host, batch).backward()
            flops += expected.get_total_flops()
    assert trial.run.books.run_flops == flops
    assert trial.session.train_flops == flops


def test_an_evaluation_is_made_once_also_where_it_is_counted():
    made = []

    def evaluate(model: nn.Module) -> esper.Evaluation:
        made.append(model)
        return toy.evaluate(model)

    trial = Recipe().build(evaluate=evaluate)
    before = len(made)
    trial.run.evaluations.measure()
    assert len(made) == before + 1
    assert trial.run.books.judging_flops > 0


class Strided(nn.Module):
    """A host whose work follows no polynomial in the length of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(1, 2, 3, stride=3), nn.Linear(2, toy.CLASSES)

    def forward(self, x):
        return self.head(self.conv(x.unsqueeze(1)).mean(-1))


def test_what_follows_no_formula_is_told_to_be_estimated():
    model = esper.wrap(Strided(), esper.GrowthConfig(layers=["head"], max_rounds=0))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    session = esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=200)
    stream = torch.Generator().manual_seed(0)
    for _ in range(60):
        length = int(torch.randint(4, 60, (), generator=stream))
        session.step((torch.randn(8, length, generator=stream), torch.zeros(8, dtype=torch.long)))
    (note,) = [event["text"] for event in session.events if event["event"] == "note" and "FLOPs" in event["text"]]
    assert "are estimated" in note


class TestWithoutFlops:
    def test_nothing_is_counted_and_the_run_grows_as_before(self):
        counting, free = (Recipe().build(flops=flops).train() for flops in (True, False))
        for trial in (counting, free):
            trial.session.finish()
        assert free.digest() == counting.digest()
        assert (free.session.train_flops, free.session.probe_flops) == (0, 0)
        assert counting.session.train_flops > 0
        assert free.run.tracing.multiply_adds == counting.run.tracing.multiply_adds

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"compare": "flops"}, r"compare is 'flops', but with flops=False .* Set compare='steps'"),
            ({"max_train_flops": 1.3}, r"max_train_flops is 1.3, but with flops=False"),
        ],
    )
    def test_what_needs_them_is_refused(self, config, message):
        with pytest.raises(esper.ConfigError, match=message):
            Recipe(growing(**config)).build(flops=False)


class TestALoopOfOnesOwn:
    """Its steps are made before the session hears of them: a few are made again to be counted, and undone."""

    @staticmethod
    def run(batches: Iterator[Any]) -> tuple[Trial, list[int], int]:
        made: list[int] = []

        def train_step(batch: Any) -> Tensor:
            made.append(len(batch[0]))
            loss = toy.loss(trial.model, batch)
            loss.backward()
            trial.optimizer.step()
            trial.optimizer.zero_grad()
            return loss.detach()

        recipe = Recipe(toy.growing(max_rounds=0), policy=Script({}), scheduler=None)
        trial = recipe.build(loss=None, train_step=train_step)
        steps = 0
        for batch in batches:
            trial.session.after_step(batch, train_step(batch))
            steps += 1
        return trial, made, steps

    def test_the_formula_bounds_how_often(self):
        _, made, steps = self.run(itertools.chain.from_iterable(changing(epoch) for epoch in range(8)))
        assert steps < len(made) <= steps + 6

    def test_what_that_takes_is_booked_and_nothing_else_is_left_of_it(self):
        trial, made, steps = self.run(itertools.islice(toy.batches(0), 6))
        assert len(made) == steps + 1
        assert trial.run.books.judging_flops == trial.run.books.run_flops // steps
        host = toy.host()
        optimizer = torch.optim.AdamW(host.parameters(), lr=0.03)
        for batch in itertools.islice(toy.batches(0), 6):
            toy.loss(host, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        ours = esper.host_state_dict(trial.model)
        assert all(torch.equal(ours[name], tensor) for name, tensor in host.state_dict().items())
