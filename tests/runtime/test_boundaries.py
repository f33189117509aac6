"""A run that never comes to a boundary cannot grow, and is told so while there is time."""

import warnings
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


def test_a_stream_without_boundaries_is_told_once_in_the_middle_of_the_growth_window():
    session = Recipe().build().session
    stream(session, 24)
    assert not notes(session)
    with pytest.warns(RuntimeWarning, match=r"25 steps \(21% of planned_steps\).*session.after_epoch.*boundary_steps"):
        stream(session, 1)
    stream(session, 60)
    assert len(notes(session)) == 1


class Endless:
    """A loader whose length nobody knows."""

    def __len__(self) -> int:
        raise TypeError("no length")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Long(Endless):
    """One whose epochs are longer than half of the growth window."""

    def __len__(self) -> int:
        return 40


@pytest.mark.parametrize(("loader", "step"), [(Endless(), 25), (Long(), 41), (None, 25)])
def test_an_epoch_is_waited_for_where_its_length_is_known(loader, step):
    session = Recipe().build(loader=loader).session
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream(session, step - 1)
        assert not notes(session)
        stream(session, 1)
    assert notes(session)


@pytest.mark.parametrize("config", [{"boundary_steps": 50}, {"max_rounds": 0}])
def test_who_has_boundaries_or_never_grows_is_not(config):
    session = Recipe(growing(**config)).build().session
    stream(session, 70)
    assert not notes(session)


def test_nor_is_a_run_with_epochs():
    trial = Recipe().build().train(6)
    assert not notes(trial.session)
