"""Several optimizers that share the parameters out train, are put back and are resumed as one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau

import esper
from esper.runtime.judging.gates import GateResult
from tests.few import few
from tests.runtime import toy
from tests.runtime.test_optimizers import Lookahead
from tests.runtime.toy import Script, Trial, growing, timeless


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    """Grafts, which are flat, fall to AdamW by themselves."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [Muon(matrices, lr=0.02), AdamW(others, lr=0.03)]


def by_layer(model: nn.Module) -> list[Optimizer]:
    """Each has the grafts of its own layers."""
    first = [*model[0].parameters()]
    others = [parameter for parameter in model.parameters() if all(parameter is not one for one in first)]
    return [AdamW(first, lr=0.03), SGD(others, lr=0.1, momentum=0.9)]


def wrapped(model: nn.Module) -> list[Optimizer]:
    """One of them remembers something around the other's steps."""
    muon, adamw = muon_and_adamw(model)
    return [Lookahead(muon), adamw]


SPLITS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "Muon and AdamW": muon_and_adamw,
    "by layer": by_layer,
    "one of them wrapped": wrapped,
}
EITHER_WAY = pytest.mark.parametrize(
    ("split", "own"),
    few(
        [(split, own) for split in SPLITS for own in (False, True)],
        [("Muon and AdamW", False), ("one of them wrapped", True)],
    ),
)


def schedules(optimizers: list[Optimizer]) -> list[Any]:
    first = getattr(optimizers[0], "optimizer", optimizers[0])
    return [CosineAnnealingLR(first, 120), LinearLR(optimizers[1], 1.0, 0.1, 100)]


def build(split: str, own: bool = False, layers: Any = ("0", ""), **options: Any) -> Trial:
    """``own``: a loop that steps them itself."""
    config = growing(layers=list(layers), **{"keep_looks": (0.95,)} | options.pop("config", {}))
    model = esper.wrap(toy.host(dropout=0.1), config)
    optimizers = SPLITS[split](model)
    scheduler = schedules(optimizers)

    def train_step(batch):
        loss = toy.loss(model, batch)
        loss.backward()
        for one in [*optimizers, *scheduler]:
            one.step()
        for one in optimizers:
            one.zero_grad()
        return loss.detach()

    step = {"train_step": train_step} if own else {"loss": toy.loss}
    arguments: dict[str, Any] = {"evaluate": toy.evaluate, "planned_steps": 120, "policy": Script({1: list(layers)})}
    session = esper.Session(model, optimizers, **step | {"scheduler": scheduler} | arguments | options)
    return Trial(model, optimizers, session, 12)


def plain(split: str) -> dict[str, Any]:
    """The weights that a loop without Esper ends with."""
    model = toy.host(dropout=0.1)
    optimizers = SPLITS[split](model)
    scheduler = schedules(optimizers)
    for epoch in range(12):
        for batch in toy.batches(epoch):
            toy.loss(model, batch).backward()
            for one in [*optimizers, *scheduler]:
                one.step()
            for one in optimizers:
                one.zero_grad()
    return model.state_dict()


@EITHER_WAY
def test_a_run_that_refuses_ends_as_without_esper(split, own):
    """Arms of grafts that compute nothing end exactly where the run does."""

    class Noops(Script):
        def command(self, place):
            return replace(super().command(place), settings={})

    trial = build(split, own, policy=Noops({1: ["0", ""]}, blueprint="noop")).train()
    gains = [event["gain"] for event in trial.events("arm_ended")]
    assert gains == [0.0, 0.0]
    theirs = plain(split)
    assert all(torch.equal(value, theirs[name]) for name, value in esper.host_state_dict(trial.model).items())


@EITHER_WAY
def test_both_ways_of_stepping_them_grow_the_same(split, own):
    trial = build(split, own).train(8)
    assert trial.events("round_ended")[0]["adopted"] is not None
    (place,) = [place for place in trial.run.places.values() if place.arena.live]
    assert place.arena.slots.grad is None
    assert place.arena.exp_avg.any()


@pytest.mark.parametrize("split", few(SPLITS, ["Muon and AdamW"]))
@pytest.mark.parametrize(("epoch", "rewarm"), few([(3, None), (8, None), (3, 0.5), (8, 0.5)], [(8, 0.5)]))
def test_it_resumes_to_the_byte(split, epoch, rewarm, tmp_path):
    """Within a window, and after an adoption."""
    config = {"rewarm": rewarm}
    whole = build(split, directory=tmp_path / "whole", config=config).train(10)
    build(split, directory=tmp_path / "cut", config=config).train(epoch)
    resumed = build(split, directory=tmp_path / "resumed", config=config)
    resumed.session.load(tmp_path / "cut" / "checkpoints")
    assert resumed.train(10 - epoch).digest() == whole.digest()
    assert timeless(resumed.session.events) == timeless(whole.session.events)


@pytest.mark.parametrize("split", ["Muon and AdamW", "by layer"])
def test_an_adoption_leaves_the_rates_where_the_run_has_them(split):
    """An arm at equal FLOPs takes fewer steps than the run."""
    trial = build(split, config={"compare": "flops"})
    trial.rounds.arms.verdict = lambda run, one: GateResult(True, ())
    trial.train(8)
    assert trial.events("arm_ended")[0]["steps"] < 40
    assert trial.events("round_ended")[0]["adopted"] is not None
    reference = toy.host()
    optimizers = SPLITS[split](reference)
    scheduler = schedules(optimizers)
    for _ in range(80):
        for one in [*optimizers, *scheduler]:
            one.step()
    rates = [group["lr"] for one in trial.optimizer for group in one.param_groups]
    assert rates == [group["lr"] for one in optimizers for group in one.param_groups]


def test_a_rollback_takes_all_of_them_back():
    trial = build("Muon and AdamW", layers=[""]).train(7)
    before = [one.state_dict()["state"] for one in trial.optimizer]
    assert all(before)
    trial.session.rollback()
    assert all(one.state_dict()["state"] for one in trial.optimizer)
    trial.train(2)


def test_with_a_gradient_scaler_and_clipping():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plain = build("by layer", clip_grad_norm=1.0).train(1)
    scaled = build("by layer", clip_grad_norm=1.0, scaler=scaler).train(1)
    for name, value in esper.host_state_dict(plain.model).items():
        torch.testing.assert_close(esper.host_state_dict(scaled.model)[name], value)


def test_an_embedding_that_only_sparse_adam_takes():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(20, 4, sparse=True), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))

        def forward(self, x):
            return self.head(self.words((x[:, 0] * 4).long().clamp(-10, 9) + 10))

    model = esper.wrap(Words(), growing(layers=["words", "head"]))
    dense = [p for name, p in model.named_parameters() if name != "words.weight"]
    optimizers = [SparseAdam([model.words.weight], lr=0.01), Adam(dense, lr=0.01)]
    policy = Script({1: ["head"]})
    session = esper.Session(model, optimizers, loss=toy.loss, evaluate=toy.evaluate, planned_steps=120, policy=policy)
    Trial(model, optimizers, session, 12).train()
    assert len([event for event in session.events if event["event"] == "arm_ended"]) == 1


class TestRefused:
    @staticmethod
    def session(make: Callable[[nn.Module], Any], **options: Any) -> esper.Session:
        model = esper.wrap(toy.host(), growing(layers=["0", "2"]))
        options = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 10} | options
        return esper.Session(model, make(model), **options)

    def test_grafts_that_none_of_them_holds(self):
        def make(model):
            return [SGD([model[0].weight, model[0].bias], 0.1), SGD(model[2].parameters(), 0.1)]

        with pytest.raises(esper.ConfigError, match=r"grafts of '0'.*give Session all: optimizer=\[muon, adamw\]"):
            self.session(make)

    def test_one_alone_of_those_that_share_the_parameters(self):
        with pytest.raises(esper.ConfigError, match=r"grafts of '0', '2'.*give Session all: optimizer=\[muon, adamw\]"):
            self.session(lambda model: muon_and_adamw(model)[0])

    def test_parameters_that_two_hold(self):
        with pytest.raises(esper.ConfigError, match="SGD holds parameters that another optimizer of the list holds"):
            self.session(lambda model: [AdamW(model.parameters()), SGD(model[2].parameters(), 0.1)])

    def test_none(self):
        with pytest.raises(esper.ConfigError, match="optimizer is an empty list"):
            self.session(lambda model: [])

    def test_a_plateau_among_several_schedulers(self):
        optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.1)
        with pytest.raises(esper.ConfigError, match="One of the schedulers is a ReduceLROnPlateau"):
            self.session(by_layer, scheduler=[ReduceLROnPlateau(optimizer)])

    def test_a_group_that_is_added_to_one_of_them(self):
        trial = build("by layer")
        trial.optimizer[0].add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        with pytest.raises(esper.ConfigError, match="AdamW was given another parameter group"):
            trial.session.step(next(toy.batches(0)))

    def test_a_checkpoint_of_other_optimizers(self, tmp_path):
        build("by layer", directory=tmp_path / "one").train(1)
        other = build("Muon and AdamW", directory=tmp_path / "other")
        with pytest.raises(esper.CheckpointError, match="'optimizer' is Muon, AdamW here and AdamW, SGD there"):
            other.session.load(tmp_path / "one" / "checkpoints")
