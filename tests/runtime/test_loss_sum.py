"""Losses are added up in float32 at least: in their own dtype a sum over an epoch would stand still."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.runtime.training.loss_sum import summable
from esper.runtime.trying.replay import Curve
from tests.runtime import toy

COUNT, VALUE = 2000, 0.65


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mean_over_a_point_of_a_curve_is_that_of_the_losses(dtype):
    curve, loss = Curve(), torch.tensor(VALUE, dtype=dtype)
    for _ in range(COUNT):
        curve.add(loss)
    curve.close(COUNT, 0)
    assert curve.train_losses[0] == pytest.approx(loss.item(), rel=1e-4)


def test_a_sum_in_their_own_dtype_stands_still():
    """The control."""
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(COUNT):
        total = total + torch.tensor(VALUE, dtype=torch.bfloat16)
    assert total / COUNT < VALUE / 2


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_they_are_no_wider_than_that(dtype, wide):
    assert summable(torch.zeros((), dtype=dtype)).dtype == wide
    assert summable(0.5) == 0.5


def test_the_training_loss_of_a_bfloat16_model_is_told_right():
    seen = []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        value = F.cross_entropy(model(batch[0].bfloat16()), batch[1])
        seen.append(float(value.detach()))
        return value

    def evaluate(model: nn.Module) -> esper.Evaluation:
        logits = model(toy.DATA.held_x.bfloat16()).float()
        return esper.Evaluation(F.cross_entropy(logits, toy.DATA.held_y, reduction="none"))

    model = esper.wrap(toy.host().bfloat16(), esper.GrowthConfig(layers=["0"], max_rounds=0))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    session = esper.Session(model, optimizer, loss=loss, evaluate=evaluate, planned_steps=1000)
    for epoch in range(100):
        for batch in toy.batches(epoch):
            session.step(batch)
    session.after_epoch()
    (told,) = [event["train_loss"] for event in session.events if event["event"] == "epoch"]
    assert told == pytest.approx(sum(seen) / len(seen), rel=1e-3)
