"""Runs that are killed at random, again and again, and go on: each ends with the bytes of the one that was not."""

import mmap
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from esper.contracts.lifecycle import State
from tests.faults.amount import SHARE, amount
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing
from tests.tree_digest import tree_digest

RECIPES = {
    "round": Recipe(
        growing(
            layers=["", "4"],
            round_fraction=0.2,
            hold_fraction=0.1,
            objective="pseudo_residual",
            incubation_fraction=0.05,
        ),
        model=lambda: toy.host(dropout=0.2, batch_norm=True),
        policy=Script({1: ["", "4"], 5: ["4", ""]}),
    ),
    "live": Recipe(
        growing(layers=["", "4"], round_fraction=0.2, hold_fraction=0.1),
        model=lambda: toy.host(dropout=0.2, batch_norm=True),
        policy=Script({1: ["", "4"], 5: ["4", ""]}, trial="live"),
    ),
}
SAVED_EVERY = 7  # steps, so mostly within an epoch
STATES = [State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING]
"""A seed is never GERMINATED for longer than a command takes."""

SAVES, IN_ARM = 0, 1
"""Bytes that a run sets while it does that; then one for each state that a seed is in."""
WANTED = [None, None, *range(2 + len(STATES))]


def train(kind: str, directory: Path, seen: mmap.mmap | None = None) -> str:
    """Train to the end, from the newest checkpoint if there is one; a digest of all that the run is then."""
    source, recipe = toy.loader(), RECIPES[kind]

    def look(event=None) -> None:
        if seen is not None and trial is not None:
            codes = torch.cat([place.state.lifecycle for place in trial.run.places.values()]).tolist()
            seen[:] = bytes([0, trial.run.arm is not None, *(int(state) in codes for state in STATES)])

    def loss(model, batch):
        look()
        return toy.loss(model, batch)

    trial = None
    trial = recipe.build(loss=loss, loader=source, directory=directory, checkpoint_steps=4, on_event=look)
    if any((directory / "checkpoints").glob("[0-9]*")):
        torch.rand(17)  # whatever a new process may have drawn
        trial.session.load(directory / "checkpoints")
    for _ in range(trial.session.epoch, trial.epochs):
        for batch in source:
            trial.session.step(batch)
            if trial.session.step_count % SAVED_EVERY == 0:
                if seen is not None:
                    seen[SAVES] = 1
                trial.session.save(directory / "checkpoints")
        trial.session.after_epoch()
    if not trial.run.is_finished:  # it may be killed after its last checkpoint
        trial.session.finish()
    return tree_digest([trial.run.snapshots.body(), toy.timeless(trial.session.events), trial.session.train_flops])


def killed(kind: str, directory: Path, seconds: float, seen: mmap.mmap, chance: random.Random) -> str | None:
    """Train in a child that is killed after some time, or soon after it does something that was chosen; its digest, if
    it was done before."""
    after, wanted, delay = chance.uniform(0.05, 0.5) * seconds, chance.choice(WANTED), chance.uniform(0, 0.03)
    result = directory.with_suffix(".digest")
    seen[:] = bytes(len(seen))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            result.write_text(train(kind, directory, seen))
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return result.read_text()
        if wanted is not None and seen[wanted]:
            deadline, wanted = min(deadline, time.monotonic() + delay), None
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.parametrize("kind", few(RECIPES, ["round"]))
def test_a_run_that_is_killed_at_random_ends_as_if_it_was_not(kind, tmp_path, record_property):
    expected = train(kind, tmp_path / "whole")
    begun = time.monotonic()
    assert train(kind, tmp_path / "again") == expected
    seconds = time.monotonic() - begun
    chance, seen, kills, runs = random.Random(kind), mmap.mmap(-1, 2 + len(STATES)), Counter(), 0
    states = STATES if kind == "round" else [state for state in STATES if state is not State.EVALUATING]
    while kills["all"] < amount(500) or min(kills[state.name] for state in states) < (50 if SHARE >= 1 else 0):
        directory, digest = tmp_path / f"run-{runs}", None
        while digest is None:
            digest = killed(kind, directory, seconds, seen, chance)
            if digest is None:
                kills["all"] += 1
                kills["while saving"] += seen[SAVES]
                kills["in an arm"] += seen[IN_ARM]
                kills.update({state.name: seen[2 + index] for index, state in enumerate(STATES)})
        assert digest == expected
        shutil.rmtree(directory)
        runs += 1
    told = ", ".join(f"{name} {number}" for name, number in kills.items() if name != "all")
    record_property("faults", f"{kills['all']} kills in {runs} runs ({told})")
