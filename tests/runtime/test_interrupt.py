"""Requests to stop: at once, or at the end of what cannot be left halfway."""

import signal

import pytest

from esper.runtime.interrupt import SIGNALS, Interrupt


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def interrupt(told) -> Interrupt:
    return Interrupt(lambda: told.append("stopping"))


@pytest.mark.parametrize("asked", SIGNALS)
def test_a_request_stops_at_once_where_nothing_would_be_lost(asked, interrupt, told):
    with pytest.raises(KeyboardInterrupt), interrupt:
        signal.raise_signal(asked)
    assert not told


@pytest.mark.parametrize("asked", SIGNALS)
def test_the_first_request_waits_and_the_second_does_not(asked, interrupt, told):
    with interrupt, interrupt.deferred():
        signal.raise_signal(asked)
        assert interrupt.requested
        assert told == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_after_what_waits_a_request_stops_at_once_again(interrupt):
    with interrupt:
        with interrupt.deferred():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_last_words_are_not_cut_off(interrupt):
    with interrupt:
        interrupt.ignore()
        for asked in SIGNALS:
            signal.raise_signal(asked)


def test_handlers_are_put_back(interrupt):
    before = [signal.getsignal(one) for one in SIGNALS]
    with interrupt:
        interrupt.ignore()
    assert [signal.getsignal(one) for one in SIGNALS] == before
