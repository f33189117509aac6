"""A run that never comes to a boundary cannot grow, and is told so while there is time."""

from itertools import cycle, islice
from typing import Any

import pytest

import esper
from tests.runtime import toy
from tests.runtime.toy import Recipe, growing

TOLD = "Nothing was evaluated in the first"


def notes(session: esper.Session) -> list[str]:
    return [event["text"] for event in session.events if event["event"] == "note" and event["text"].startswith(TOLD)]


def stream(session: esper.Session, steps: int) -> None:
    for batch in islice(cycle(toy.batches(0)), steps):
        session.step(batch)


def test_a_stream_without_boundaries_is_told_in_the_middle_of_the_growth_window_and_warned_at_its_end():
    session = Recipe().build().session
    stream(session, 23)
    assert not notes(session)
    stream(session, 1)
    (note,) = notes(session)
    assert note.startswith("Nothing was evaluated in the first 24 steps (20% of planned_steps)")
    stream(session, 24)
    with pytest.warns(RuntimeWarning, match=r"49 steps \(41% of planned_steps\).*session.after_epoch.*boundary_steps"):
        stream(session, 1)
    stream(session, 40)
    assert len(notes(session)) == 2


class Endless:
    """A loader whose length nobody knows."""

    def __len__(self) -> int:
        raise TypeError("no length")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Short(Endless):
    """One of few batches."""

    def __len__(self) -> int:
        return 10


class Long(Endless):
    """One whose epochs are longer than the growth window."""

    def __len__(self) -> int:
        return 60


@pytest.mark.parametrize(("loader", "step"), [(Endless(), 24), (Short(), 11)])
def test_an_epoch_is_waited_for_where_its_length_is_known(loader, step):
    session = Recipe().build(loader=loader).session
    stream(session, step - 1)
    assert not notes(session)
    stream(session, 1)
    assert notes(session)


def test_also_where_it_is_longer_than_the_growth_window():
    session = Recipe().build(loader=Long()).session
    stream(session, 60)
    assert not notes(session)
    with pytest.warns(RuntimeWarning, match=TOLD):
        stream(session, 1)
    assert len(notes(session)) == 1


@pytest.mark.parametrize("config", [{"boundary_steps": 55}, {"max_rounds": 0}])
def test_who_has_boundaries_or_never_grows_is_not(config):
    session = Recipe(growing(**config)).build().session
    stream(session, 70)
    assert not notes(session)


@pytest.mark.parametrize("epochs", [3, 4, 12])
def test_nor_is_a_run_with_epochs_warned(epochs):
    trial = Recipe(epochs=epochs).build(loader=toy.loader() if epochs == 4 else None).train()
    assert len(notes(trial.session)) == (epochs == 3)
