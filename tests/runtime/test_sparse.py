"""Embeddings with sparse gradients train, grow, are captured and resumed like others."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

import esper
from esper.contracts.commands import Command
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless

WORDS = torch.randint(0, 12, (460, 3), generator=torch.Generator().manual_seed(1))
CLASSES = WORDS.sum(1) % 3

STRATEGIES = ("fixed_ramp", "performance_linked", "drift_controlled", "grad_norm_gated")


class Bag(nn.Module):
    """Classes of three words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden = nn.Embedding(12, 6, sparse=True), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.words(x).mean(1)).relu())


def evaluate(model: nn.Module) -> esper.Evaluation:
    return esper.Evaluation(losses=F.cross_entropy(model(WORDS[160:]), CLASSES[160:], reduction="none"))


def batches(epoch: int) -> Any:
    for rows in torch.randperm(160, generator=torch.Generator().manual_seed(epoch)).split(16):
        yield WORDS[rows], CLASSES[rows]


@dataclass(frozen=True)
class Affine(Script):
    """Grows at the embedding, blended in by a strategy."""

    strategy: str = "fixed_ramp"

    def command(self, place: Any) -> Command:
        return replace(super().command(place), blueprint="affine", settings={}, strategy=self.strategy)


def build(strategy: str = "fixed_ramp", trial: str = "round", **session: Any) -> Trial:
    def train_step(batch):
        made.optimizer.zero_grad()  # gradients stay until here
        loss = toy.loss(made.model, batch)
        loss.backward()
        made.optimizer.step()
        return loss.detach()

    policy = Affine({1: ["words"]}, trial=trial, strategy=strategy)
    recipe = Recipe(growing(layers=["words", "hidden"]), model=Bag, optimizer=lambda p: SGD(p, 0.3), policy=policy)
    made = recipe.build(evaluate=evaluate, **{"loss": None, "train_step": train_step, "scheduler": None} | session)
    return made


def train(trial: Trial, epochs: int) -> Trial:
    for epoch in range(trial.session.epoch, epochs):
        for batch in batches(epoch):
            trial.session.step(batch)
        trial.session.after_epoch()
    return trial


@pytest.mark.parametrize(
    ("strategy", "trial"),
    few(
        [(strategy, trial) for strategy in STRATEGIES for trial in ("round", "live")],
        [("fixed_ramp", "round"), ("grad_norm_gated", "live"), ("drift_controlled", "live")],
    ),
)
def test_a_run_grows_to_its_end(strategy, trial):
    made = train(build(strategy, trial), 8)
    made.session.finish()
    assert made.model.words.weight.grad.is_sparse
    assert made.events("arm_ended" if trial == "round" else "trial_ended")


@pytest.mark.parametrize("own", [True, False])
def test_it_resumes_to_the_byte_with_gradients_that_are_there(own, tmp_path):
    session: dict[str, Any] = {} if own else {"loss": toy.loss, "train_step": None, "accumulate": 3}
    whole = train(build(directory=tmp_path / "whole", **session), 8)
    train(build(directory=tmp_path / "cut", **session), 4)
    resumed = build(directory=tmp_path / "resumed", **session)
    resumed.session.load(tmp_path / "cut" / "checkpoints")
    assert resumed.model.words.weight.grad.is_sparse
    assert train(resumed, 8).digest() == whole.digest()
    assert timeless(resumed.session.events) == timeless(whole.session.events)


def test_clipping_them_is_refused():
    with pytest.raises(esper.ConfigError, match="'words' has sparse gradients, whose norm torch cannot clip"):
        build(loss=toy.loss, train_step=None, clip_grad_norm=1.0)
