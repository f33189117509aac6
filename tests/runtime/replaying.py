"""Rounds that try a graft that computes nothing: its arm must end exactly where the run itself does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


class Noops(Script):
    """Germinates a graft that computes nothing."""

    def command(self, place: Any) -> Command:
        return replace(super().command(place), settings={})


def host() -> nn.Sequential:
    """With parts whose state no ``state_dict`` holds."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(toy.FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, toy.CLASSES)
    )
    torch.manual_seed(1)
    return made


def trained(
    *,
    change: Callable[[Trial, int], None] = lambda trial, step: None,
    trial: str = "round",
    model: Callable[[], nn.Module] = host,
    epochs: int = 7,
    batches: Callable[[int], Any] = toy.batches,
    **session: Any,
) -> Trial:
    """A run that tries it in steps 20 to 60, with ``change`` called before every step."""
    recipe = Recipe(
        growing(layers=["0"]), model=model, policy=Noops({1: ["0"]}, blueprint="noop", trial=trial), scheduler=None
    )
    made = recipe.build(**session)
    for epoch in range(epochs):
        for batch in batches(epoch):
            change(made, made.session.step_count)
            made.session.step(batch)
        made.session.after_epoch()
    return made


def gains(trial: Trial) -> list[float]:
    return [event["gain"] for event in trial.events("arm_ended")]


def reasons(trial: Trial) -> list[str]:
    return [event["reason"] for event in trial.session.events if event["event"] in ("round_ended", "trial_ended")]


def plain(change: Callable[[nn.Module, int], None], loss: Callable[[nn.Module, Any], Tensor], epochs: int = 7):
    """The weights that a loop without Esper ends with."""
    model = host()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    step = 0
    for epoch in range(epochs):
        for batch in toy.batches(epoch):
            change(model, step)
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            step += 1
    return model.state_dict()


def weights(trial: Trial) -> dict[str, Tensor]:
    return esper.host_state_dict(trial.model)
