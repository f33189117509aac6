"""What is not finite stays where it was born: not in the host if it was born in a graft, with no blame on a graft if it
was born in the host."""

import random
from functools import cache
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import esper.kasmina.grafts.group as group_module
from esper.blueprints import catalogue
from esper.contracts.lifecycle import State
from tests.faults.amount import amount
from tests.faults.containment import (
    COUNTED,
    PRECISIONS,
    SEED,
    STATES,
    Emitting,
    Seen,
    Subject,
    differing,
    not_finite,
)
from tests.faults.lived import lived, recipe, run_is_finite
from tests.few import few
from tests.kasmina.growing import transition_to
from tests.runtime import toy
from tests.runtime.toy import Trial


class Cell(NamedTuple):
    """A value that is put somewhere while the graft is in a state.

    Args:
        where: the place of the value.
        state: of the graft.
        value: ``nan``, ``inf``, ``-inf``, or ``huge``: the largest that is finite.
        precision: of the host and the grafts.
        reads: what the grafts read.
    """

    where: str
    state: State
    value: str
    precision: str
    reads: str

    @property
    def number(self) -> float:
        """The value itself."""
        return torch.finfo(PRECISIONS[self.precision]).max if self.value == "huge" else float(self.value)


NOT_FINITE = ("nan", "inf", "-inf")
ALL = (*NOT_FINITE, "huge")
SLOTTED = tuple(state for state in STATES if state not in (State.GERMINATED, State.FOSSILIZED))
"""States in which the graft has an optimizer, be it one of its own."""

BORN_IN_HOST = {
    "batch": (STATES, ALL),
    "host weight": (STATES, NOT_FINITE),
    "incoming gradient": (STATES, NOT_FINITE),
    "host optimizer": (STATES, NOT_FINITE),
}
BORN_IN_GRAFT = {
    "graft weight": ((State.TRAINING, *COUNTED), ALL),
    "graft output": (COUNTED, NOT_FINITE),
    "graft gradient": (COUNTED, NOT_FINITE),
    "graft optimizer": (SLOTTED, ALL),
    "alpha": (STATES, NOT_FINITE),
    "telemetry": (STATES, NOT_FINITE),
}


def cells(where: str, states: tuple[State, ...], values: tuple[str, ...]) -> list[Cell]:
    """All cells of a place of the value; what grafts read takes turns."""
    rows = enumerate(product(states, values, PRECISIONS))
    turns = len(PRECISIONS) + 1
    return [Cell(where, *row, ("chunk", "input")[index // turns % 2]) for index, row in rows]


MATRIX = {where: cells(where, *of) for where, of in (BORN_IN_HOST | BORN_IN_GRAFT).items()}


@pytest.fixture(autouse=True)
def _emitting(monkeypatch):
    monkeypatch.setitem(catalogue.CATALOGUE, Emitting.id, Emitting)


@cache
def sound(state: State | None, precision: str, reads: str, is_emitting: bool = False) -> list[Seen]:
    """What is to be seen of a run in which nothing happens, beginning with a graft in a state."""
    return Subject(state, precision, reads, emission=("graft gradient", "0") if is_emitting else None).train()


def put(subject: Subject, cell: Cell) -> None:
    """Put the value there, behind everybody's back."""
    value = cell.number
    match cell.where:
        case "batch":
            subject.batches[0][3, 1] = value
        case "host weight":
            subject.model[0].weight.data[2, 1] = value
        case "incoming gradient":
            subject.incoming = value
        case "host optimizer":
            subject.optimizer.state[subject.model[0].weight]["exp_avg"][2, 1] = value
        case "graft weight" if cell.value == "huge":
            subject.bytes_N.fill_(min(value, torch.finfo(subject.bytes_N.dtype).max))
        case "graft weight":
            subject.bytes_N[1] = value
        case "graft optimizer":
            subject.slot("exp_avg")[1] = min(value, torch.finfo(torch.float32).max)
            subject.slot("updates").fill_(1)
        case "alpha":
            subject.place.state.alpha[SEED] = value
        case "telemetry":
            for tensor in subject.place.telemetry.buffers():
                tensor[2] = value


def wrong_in_host(cell: Cell) -> list[str]:
    """What is not as promised: the host gets what it would without Esper, and nobody is blamed."""
    bare = Subject(None, cell.precision, is_bare=True)
    subject = Subject(cell.state, cell.precision, cell.reads, learns=False)
    if cell.where == "host optimizer":
        bare.step(bare.batches[0])
        subject.step(subject.batches[0])
    for one in (bare, subject):
        put(one, cell)
    wrong = [name for one, other in zip(subject.train(), bare.train(), strict=True) for name in differing(one, other)]
    wrong += ["a seed is blamed"] if any(subject.faults) else []
    wrong += ["bytes of the graft"] if subject.state is not State.GERMINATED and not subject.is_finite else []
    return wrong


def wrong_in_graft(cell: Cell) -> list[str]:
    """What is not as promised: the host and the neighbours get what they would without the graft, or without its
    gradient, and it is blamed. One that has trained in isolation is planted then."""
    emission = (cell.where, cell.value) if cell.where in ("graft output", "graft gradient") else None
    subject = Subject(cell.state, cell.precision, cell.reads, emission=emission)
    put(subject, cell)
    seen = subject.train()
    wrong = [name for one in seen for name in not_finite(one)]
    is_read = cell.state in COUNTED and not (cell.where == "alpha" and cell.state is State.FOSSILIZED)
    if cell.where == "graft gradient":
        expected = sound(cell.state, cell.precision, cell.reads, True)
    elif cell.where == "graft optimizer" or not is_read:
        expected = sound(cell.state, cell.precision, cell.reads)
    else:
        expected = sound(None, cell.precision, cell.reads)
    steps = 1 if cell.where in ("alpha", "graft optimizer") and cell.state in COUNTED else len(seen)
    wrong += [name for one, other in zip(seen[:steps], expected, strict=False) for name in differing(one, other)]
    if cell.state is State.TRAINING:
        transition_to(subject.place, SEED, State.GRAFTING)
        wrong += not_finite(subject.step(subject.batches[0]))
    blamed = is_read and (cell.where != "graft optimizer" or not subject.is_finite)
    wrong += [] if subject.faults == [0, subject.bit * blamed, 0, 0] else [f"faults {subject.faults}"]
    return wrong


def wrong_in_telemetry(cell: Cell) -> list[str]:
    """What is not as promised: all goes on as if nothing were, and a report is given."""
    subject = Subject(cell.state, cell.precision, cell.reads)
    put(subject, cell)
    subject.place.report()
    seen = subject.train()
    report, expected = subject.place.report(), sound(cell.state, cell.precision, cell.reads)
    wrong = [name for one, other in zip(seen, expected, strict=True) for name in differing(one, other)]
    wrong += ["a seed is blamed"] if any(subject.faults) else []
    return wrong + ([] if len(report.states) == 4 else ["report"])


def wrong(cell: Cell) -> list[str]:
    if cell.where == "telemetry":
        return wrong_in_telemetry(cell)
    return wrong_in_host(cell) if cell.where in BORN_IN_HOST else wrong_in_graft(cell)


def tried(where: str, of: list[Cell]) -> list[Cell]:
    """The share of a list, spread."""
    return random.Random(where).sample(of, amount(len(of)))


@pytest.mark.parametrize("where", MATRIX)
def test_what_is_not_finite_stays_where_it_was_born(where, record_property):
    chosen = tried(where, MATRIX[where])
    assert {cell: what for cell in chosen if (what := wrong(cell))} == {}
    record_property("faults", f"{len(chosen)} of {len(MATRIX[where])} cells")


class Unguarded:
    """What the entry would be without the guard."""

    @staticmethod
    def apply(
        x: Tensor, params_GN: Tensor, mark: Tensor, is_shared: bool, *of: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        return x.expand(len(params_GN), *x.shape) if is_shared else x, params_GN, mark


def unselected(y_G: Tensor, delta_G: Tensor, alpha_G: Tensor, counts_G: Tensor) -> tuple[Tensor, Tensor]:
    """What the sum would be without the guard."""
    return y_G + alpha_G.to(y_G.dtype).view(-1, *[1] * (y_G.dim() - 1)) * delta_G.to(y_G.dtype), counts_G


@pytest.mark.parametrize(
    "where", few(["graft weight", "graft output", "graft gradient", "alpha"], ["graft weight", "graft gradient"])
)
def test_without_the_guard_it_spreads(where, monkeypatch, record_property):
    """Negative control."""
    monkeypatch.setattr(group_module, "Entry", Unguarded)
    monkeypatch.setattr(group_module, "blended", unselected)
    is_read = [
        one for one in MATRIX[where] if one.state in COUNTED and (where, one.state) != ("alpha", State.FOSSILIZED)
    ]
    chosen = tried(where, is_read)
    assert [cell for cell in chosen if not wrong(cell)] == []
    record_property("faults", f"{len(chosen)} of {len(is_read)} cells, none of which is contained")


# Runs

LIVED = tuple(state for state in STATES if state is not State.EVALUATING)
"""States that a seed of a run is in between two steps."""

RUNS = {where: cells(where, LIVED, NOT_FINITE) for where in ("host weight", "host optimizer")}
TOLD = cells("telemetry", (State.DORMANT,), NOT_FINITE)


def harm(run: Trial, cell: Cell) -> None:
    weight = run.model[0].weight
    tensor = weight.data if cell.where == "host weight" else run.optimizer.state[weight]["exp_avg"]
    tensor[0, 1] = cell.number


@pytest.mark.parametrize("where", few(RUNS, ["host weight"]))
def test_a_run_whose_host_is_harmed_goes_back(where, record_property):
    """Within an epoch, and blames no seed."""
    chosen = tried(where, RUNS[where])
    for cell in chosen:
        run = lived(cell.state, cell.precision)
        harm(run, cell)
        for batch in toy.batches(7):
            run.session.step(batch)
            if run.session.step_count % toy.STEPS_PER_EPOCH == 0:
                run.session.after_epoch()
        assert (len(run.events("rollback")), run_is_finite(run), run.events("fault")) == (1, True, []), cell
    record_property("faults", f"{len(chosen)} of {len(RUNS[where])} runs")


def test_a_run_whose_telemetry_is_harmed_goes_on(record_property):
    """To its end, whatever the heuristic makes of it."""
    chosen = tried("telemetry", TOLD)
    for cell in chosen:
        run = recipe(cell.precision, layers=["", "0", "4"]).build(policy=None)
        for epoch in range(run.epochs):
            for batch in toy.batches(epoch):
                run.session.step(batch)
                for place in run.run.places.values():
                    for tensor in place.telemetry.buffers():
                        tensor.fill_(cell.number)
            run.session.after_epoch()
        run.session.finish()
        assert (run_is_finite(run), run.events("fault"), run.events("rollback")) == (True, [], []), cell
        assert run.events("round_ended"), cell
    record_property("faults", f"{len(chosen)} of {len(TOLD)} runs")
