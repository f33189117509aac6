"""Runs that are harmed at random, or told to go back, in whatever state their seeds are, also while they go back: each
time the run is to the byte what it was at the state that it goes back to."""

import math
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.contracts.lifecycle import LIVE, State
from esper.runtime.run import Run
from esper.runtime.watching.recovery import Recovery
from tests.faults.amount import SHARE, amount
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest

STATES = (State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING)
"""A seed is never GERMINATED for longer than a command takes, and EVALUATING only where arms run, which are interrupted
then."""

EPOCHS, STEPS = 24, 10
BY_HAND = ("by hand", "by hand, twice", "interrupted")
WAYS = (*BY_HAND, "not finite", "losses not finite", "held-out loss")

EACH, OFTEN, SELDOM = 20, 0.2, 0.003
"""Of every way and in every state there are to be so many; a step is harmed with the second probability as long as
there are fewer in the state that it finds, else with the third."""

NOT_RESTORED = (".version", "_in_state", ".embargo_epochs", ".telemetry.", ".state.", ".incubation.")
"""Columns of seeds, which are looked at apart, and what is not gone back to: seeds that wait for their round go on."""


def sealed(body: dict[str, Any], scheduler: Any) -> str:
    """Digest of all that going back restores, but for columns of seeds."""
    model = {name: value for name, value in body["model"].items() if not any(part in name for part in NOT_RESTORED)}
    return tree_digest([model, body["optimizer"], body["others"], scheduler])


def columns(run: Run, numbers: list[int]) -> list[Any]:
    """State and strength of the grafts of some lifecycles."""
    found = []
    for number in numbers:
        state = run.places[run.books.alive[number].layer_id].state
        is_its = state.lifecycle_id == number
        found.append((number, state.lifecycle[is_its].tolist(), state.alpha[is_its].tolist()))
    return found


class Watch:
    """Notes what the run was whenever a state of it is kept, and what it is when it has gone back there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.differ = 0, 0
        kept: dict[int, tuple[str, list[Any]]] = {}  # by id of the body, which is not given up: no other gets its id
        bodies: list[Any] = []
        entry_of, roll_back = Recovery._entry, Recovery.roll_back

        def _entry(recovery: Recovery, *args: Any) -> dict[str, Any]:
            made, run = entry_of(recovery, *args), recovery._run
            if args[2] is None or not run.in_state(State.EVALUATING):  # of the run as it is, not of a twin
                seal = sealed(run.snapshots.body(), run.snapshots.scheduler())
                kept[id(made["body"])] = seal, columns(run, made["live"])
                bodies.append(made["body"])
            return made

        def _roll_back(recovery: Recovery, entry: dict[str, Any], *args: Any) -> None:
            roll_back(recovery, entry, *args)
            run = recovery._run
            if id(entry["body"]) in kept:
                self.done += 1
                now = sealed(run.snapshots.body(), run.snapshots.scheduler()), columns(run, entry["live"])
                self.differ += now != kept[id(entry["body"])]

        monkeypatch.setattr(Recovery, "_entry", _entry)
        monkeypatch.setattr(Recovery, "roll_back", _roll_back)


@contextmanager
def interrupted_after(calls: int) -> Iterator[None]:
    """Press Ctrl-C once so many functions were called."""
    left = calls

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # some processes ignore it
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)


class Presses:
    """What a run in whose arms Ctrl-C is pressed now and then is given to train and to be judged with."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        self.calls_left = -1

    def _count(self) -> None:
        if self.trial is not None and self.trial.run.arm is not None:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise KeyboardInterrupt

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self._count()
        return toy.loss(model, batch)

    def evaluate(self, model: nn.Module) -> esper.Evaluation:
        self._count()
        return toy.evaluate(model)


def build(chance: random.Random, presses: Presses) -> Trial:
    config = growing(
        layers=["", "4"],
        round_fraction=0.2,
        hold_fraction=0.1,
        ramp_fraction=0.05,
        objective="pseudo_residual",
        incubation_fraction=0.05,
        emergency_response=chance.choice(["rollback", "lower_lr", "cull"]),
        emergency_patience=chance.choice([1, 3]),
        max_emergencies=10_000,
        max_rounds=10_000,
        max_failures=10_000,
        quarantine_epochs=0,
        embargo_epochs=0,
    )
    policy = Script({epoch: ["", "4"] for epoch in range(1, EPOCHS)}, trial=chance.choice(["live", "live", "round"]))
    recipe = Recipe(config, epochs=EPOCHS, model=lambda: toy.host(dropout=0.2, batch_norm=True), policy=policy)
    presses.trial = recipe.build(loss=presses.loss, evaluate=presses.evaluate)
    return presses.trial


def harm(trial: Trial, how: str, chance: random.Random) -> None:
    """Do what leads to a rollback, or ask for one."""
    if how == "by hand":
        trial.session.rollback()
    elif how == "by hand, twice":
        trial.session.rollback()
        trial.session.rollback()
    elif how == "interrupted":
        try:
            with interrupted_after(chance.randrange(1, 4000)):
                trial.session.rollback()
        except KeyboardInterrupt:
            trial.session.rollback()
    else:
        value = {"not finite": math.nan, "losses not finite": math.inf, "held-out loss": 5.0}[how]
        with torch.no_grad():
            trial.model[0].weight.fill_(value)


def states(trial: Trial) -> list[str]:
    """That seeds are in, of ``STATES``."""
    codes = {int(code) for place in trial.run.places.values() for code in place.state.lifecycle}
    return [state.name for state in STATES if int(state) in codes]


def harmed(
    trial: Trial,
    chance: random.Random,
    watch: Watch,
    seen: Counter[str],
    batches: list[Any],
    ways: Sequence[str] = WAYS,
) -> None:
    """Harm it in one of these ways, the least seen one half of the time, and let it notice."""
    found, before = states(trial), watch.done
    is_live = bool(trial.run.in_state(*LIVE))
    ways = [way for way in ways if is_live or way != "held-out loss"]  # without a graft Esper leaves a rise alone
    how = chance.choice([chance.choice(ways), min(ways, key=lambda way: seen[way])])
    harm(trial, how, chance)
    if how in ("not finite", "held-out loss"):
        trial.session.after_epoch()
    elif how == "losses not finite":
        for again in batches[:4]:
            trial.session.step(again)
    if watch.done > before:
        seen.update([how, *found])


def wander(chance: random.Random, watch: Watch, seen: Counter[str]) -> None:
    """Train a run to its end, harmed now and then; also where its arms are interrupted."""
    presses = Presses()
    trial, batches = build(chance, presses), list(toy.batches(3))
    for _ in range(EPOCHS):
        for batch in [*batches[:STEPS], None]:
            is_rare = any(seen[name] < EACH for name in states(trial))
            if trial.recovery.newest is not None and chance.random() < (OFTEN if is_rare else SELDOM):
                harmed(trial, chance, watch, seen, batches)
            presses.calls_left = chance.randrange(1, 60) if chance.random() < 0.5 else -1
            try:
                trial.session.after_epoch() if batch is None else trial.session.step(batch)
            except KeyboardInterrupt:
                if trial.recovery.newest is not None and chance.random() < 0.5:  # else they are gone on with
                    harmed(trial, chance, watch, seen, batches, BY_HAND)
            presses.calls_left = -1


def gone_back(monkeypatch: pytest.MonkeyPatch, times: int, *, of_each: bool = False) -> tuple[Watch, Counter[str]]:
    """So many rollbacks at least, of runs with a few each; and if asked for, enough of each kind."""
    chance, watch, seen = random.Random(0), Watch(monkeypatch), Counter[str]()
    while watch.done < times or (of_each and missing(seen)):
        wander(chance, watch, seen)
    return watch, seen


def missing(seen: Counter[str]) -> list[str]:
    """What there were too few of."""
    return [name for name in (*WAYS, *(state.name for state in STATES)) if seen[name] < EACH]


def test_a_run_that_goes_back_is_to_the_byte_what_it_was(monkeypatch, record_property):
    watch, seen = gone_back(monkeypatch, amount(500), of_each=SHARE == 1)
    told = ", ".join(f"{name} {number}" for name, number in sorted(seen.items()))
    record_property("faults", f"{watch.done} rollbacks: {told}")
    assert watch.differ == 0


@pytest.mark.parametrize("part", few(["optimizer", "model"], ["optimizer"]))
def test_would_be_seen_if_a_byte_were_not_restored(monkeypatch, part):
    """Negative control."""
    roll_back = Recovery.roll_back

    def _roll_back(recovery: Recovery, *args: Any) -> None:
        roll_back(recovery, *args)
        run = recovery._run
        weight = next(run.model.parameters())
        tensor = weight if part == "model" else run.trainer._optimizer.parts[0].state[weight]["exp_avg"]
        with torch.no_grad():
            tensor.view(-1)[0] += 1e-6

    monkeypatch.setattr(Recovery, "roll_back", _roll_back)
    watch, _ = gone_back(monkeypatch, 3)
    assert watch.differ > 0
