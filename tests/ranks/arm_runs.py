"""Runs whose arms go elsewhere: rank 0 trains, the others run its arms. Each tells what it has come to."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from esper.checkpoint import store
from esper.contracts.errors import EsperError
from esper.runtime.trying.arm_rank import ArmRank
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless
from tests.tree_digest import tree_digest

LAYERS = ["", "4", "0:4"]

CONFIGS: dict[str, dict[str, Any]] = {
    "as many steps": {},
    "training in isolation": {"objective": "pseudo_residual", "incubation_fraction": 0.1},
    "the first": {"choice": "first"},
    "accumulated": {},
    "rechunked": {},
    "cancelled": {},
    "a smaller batch at the end of an epoch": {"compare": "flops", "gate_z": 1e-9},
    "batches of many sizes": {"compare": "flops", "gate_z": 1e-9},
}
"""Of rounds, by the name of a run."""

IN_THE_WINDOW = 25
"""A step of it."""


def recipe(name: str, arms: str = "devices") -> Recipe:
    """Three candidates at the end of the second epoch."""
    layers = [*LAYERS, "0"] if name == "rechunked" else LAYERS
    config = growing(layers=layers, arms=arms, **CONFIGS.get(name, {}))
    session = {"accumulate": 3, "clip_grad_norm": 1.0} if name == "accumulated" else {}
    return Recipe(
        config, model=lambda: toy.host(dropout=0.3, batch_norm=True), policy=Script({2: LAYERS}), session=session
    )


def batches(name: str, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for index, (x, y) in enumerate(toy.batches(epoch)):
        rows = toy.BATCH
        if name == "a smaller batch at the end of an epoch" and index == toy.STEPS_PER_EPOCH - 1:
            rows = 5
        if name == "batches of many sizes":
            rows = 4 + (7 * epoch + 3 * index) % 12
        yield x[:rows], y[:rows]


def trained(trial: Trial, name: str) -> dict[str, Any]:
    """To the end, from wherever it stands."""
    session = trial.session
    for epoch in range(session.epoch, trial.epochs):
        for index, batch in enumerate(batches(name, epoch)):
            if epoch * toy.STEPS_PER_EPOCH + index >= session.step_count:
                session.step(batch)
            if session.step_count == IN_THE_WINDOW and name == "rechunked":
                session.rechunk("0", 1)
            if session.step_count == IN_THE_WINDOW and name == "cancelled":
                session.cancel("", 0)
        session.after_epoch()
    session.finish()
    return told(trial)


def told(trial: Trial) -> dict[str, Any]:
    """What a run has come to, and how."""
    return {
        "parameters": tree_digest(dict(trial.model.named_parameters())),
        "events": timeless(trial.session.events),
        "books": trial.run.books.to_dict(),
    }


def counted(taken: list[str]) -> Callable[[ArmRank], Any]:
    """Note of every arm that a rank runs whether it knew how long the arm would be while the run made its window."""
    outcome = ArmRank._outcome

    def noted(self: ArmRank, now: Any, candidate: int, forecast: Any) -> Any:
        taken.append("foretold" if forecast is not None else "not foretold")
        return outcome(self, now, candidate, forecast)

    ArmRank._outcome = noted  # type: ignore[method-assign]
    return outcome


def elsewhere(rank: int, size: int, name: str) -> Any:
    """A run; of a rank that runs arms, what is known of these."""
    taken: list[str] = []
    outcome = counted(taken)
    try:
        trial = recipe(name).build()
        return taken if trial.session.serve_arms() else trained(trial, name)
    finally:
        ArmRank._outcome = outcome  # type: ignore[method-assign]


def harmed(rank: int, size: int, number: str) -> Any:
    """Rank 1 gets a signal in the middle of its first arm."""
    trial = recipe("as many steps").build()
    if rank == 1:
        replay_at(trial, 5, lambda: os.kill(os.getpid(), int(number)))
    for line in trial.session._lines:
        line._timeout = 2.0
    return None if trial.session.serve_arms() else trained(trial, "as many steps")


def replay_at(trial: Trial, step: int, act: Callable[[], None]) -> None:
    """Do something in a step of an arm."""
    train = trial.run.trainer.train
    done = 0

    def acting(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == step:
            act()
        return train(*args, **kwargs)

    trial.run.trainer.train = acting


def failing(rank: int, size: int) -> str:
    """The loss fails in an arm."""

    def fails() -> None:
        raise ValueError("no loss today")

    trial = recipe("as many steps").build()
    if rank == 1:
        replay_at(trial, 5, fails)
    try:
        return "served" if trial.session.serve_arms() else str(trained(trial, ""))
    except EsperError as error:
        trial.session.finish()
        return f"{type(error).__name__}: {error}"


def unlike(rank: int, size: int) -> Any:
    """The loss is another one on rank 1."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return toy.loss(model, batch) * (1 + 1e-6 * rank)

    trial = recipe("as many steps").build(loss=loss)
    return None if trial.session.serve_arms() else trained(trial, "")


def otherwise(rank: int, size: int) -> str:
    """Rank 1 plans another number of steps."""
    made = recipe("as many steps")
    try:
        replace(made, epochs=made.epochs + rank).build()
    except EsperError as error:
        return str(error)
    return "nothing was noticed"


def stepping(rank: int, size: int) -> str | None:
    """Rank 1 goes on as if it trained."""
    trial = recipe("as many steps").build()
    if rank == 0:
        trial.session.finish()
        return None
    try:
        trial.session.step(next(toy.batches(0)))
    except EsperError as error:
        return str(error)
    return "nothing was noticed"


def saving(rank: int, size: int, folder: str, dies_at: str) -> Any:
    """A run that goes on from its checkpoint; rank 0 dies in writing one, in the window or between arms."""
    write = store.write

    def dies(path: Path, tree: Any, number: int) -> Path:
        now = tree["growth"]["round"]
        in_window = now is not None and now["run"] is None and tree["clock"]["step"] > 30
        between_arms = now is not None and now["arm"] == 1
        if {"window": in_window, "arms": between_arms}.get(dies_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, tree, number)

    trial = recipe("as many steps").build(directory=Path(folder) / "run")
    if trial.session.serve_arms():
        return None
    store.write = dies
    if any((Path(folder) / "run/checkpoints").glob("[0-9]*")):
        trial.session.load(Path(folder) / "run/checkpoints")
    return trained(trial, "as many steps")


ALL: dict[str, Callable[..., Any]] = {
    "elsewhere": elsewhere,
    "harmed": harmed,
    "failing": failing,
    "unlike": unlike,
    "otherwise": otherwise,
    "stepping": stepping,
    "saving": saving,
}
