"""Runs with a seed in a state, in several precisions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from tests.faults.containment import FALLING, PRECISIONS
from tests.runtime import toy
from tests.runtime.toy import DATA, Recipe, Script, Trial, growing


def recipe(precision: str, **settings: object) -> Recipe:
    """A run that adopts whatever is not worse.

    Args:
        precision: of ``PRECISIONS``.
        settings: of its configuration.
    """
    dtype = PRECISIONS[precision]

    def logits(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            return model(x.to(dtype)).float()

    def evaluate(model: nn.Module) -> esper.Evaluation:
        return esper.Evaluation(losses=F.cross_entropy(logits(model, DATA.held_x), DATA.held_y, reduction="none"))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(logits(model, batch[0]), batch[1])

    return Recipe(
        growing(round_fraction=0.2, hold_fraction=0.1, gate_z=1e-9, **settings),
        model=lambda: toy.host(dropout=0.2, batch_norm=True).to(dtype),
        session={"loss": loss, "evaluate": evaluate},
    )


def lived(state: State, precision: str) -> Trial:
    """A run in which the seed has just come into a state."""
    settings, trial = {"keep_looks": (0.9,)}, "live"
    if state is State.GERMINATED:
        trial = "round"
    elif state is State.TRAINING:
        settings |= {"objective": "pseudo_residual", "incubation_fraction": 0.05}
    elif state is State.FOSSILIZED:
        settings = {"keep_looks": (0.55,), "freeze": "at_once"}
    run = recipe(precision, **settings).build(policy=Script({1: [""]}, trial=trial))
    if state is State.FOSSILIZED:
        return run.train_until(lambda run: bool(run.run.places[""].arena.fossils))
    if state not in FALLING:
        return run.train_until(lambda run: run.state() is state)
    run.train_until(lambda run: run.state() is State.FINE_TUNING)
    assert run.session.submit(Command("", "all", state)).accepted
    return run


def run_is_finite(run: Trial) -> bool:
    """Whether all parameters are, those of the grafts too."""
    return all(bool(torch.isfinite(one).all()) for one in run.model.parameters())
