"""Whether ``esper tamiyo serve`` is well, as it tells over HTTP."""

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from esper.cli.command_line import parse
from esper.cli.commands.tamiyo import TamiyoCommand
from esper.cli.health import LATE_AFTER_S, Health
from esper.cli.main import WRONG_INPUT, main
from esper.contracts.errors import ConfigError


class Clock:
    """Goes on when it is told.

    Attributes:
        seconds: what it shows.
    """

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock) -> Iterator[Health]:
    health = Health("127.0.0.1:0", clock)
    yield health
    health.close()


def asked(health: Health, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_one_that_has_not_heard_of_its_bus_lives_and_is_not_ready(health):
    assert asked(health, "/livez") == (200, "well\n")
    assert asked(health, "/readyz") == (503, "the bus does not answer\n")


def test_one_that_hears_its_bus_is_ready_until_it_does_not(health):
    health.beat(True)
    assert asked(health, "/readyz") == (200, "well\n")
    health.beat(False)
    assert asked(health, "/readyz")[0] == 503
    assert asked(health, "/livez")[0] == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_one_that_hangs_is_neither(path, health, clock):
    health.beat(True)
    clock.seconds += LATE_AFTER_S + 1
    assert asked(health, path)[0] == 503


def test_another_path_says_where_to_ask(health):
    assert asked(health, "/") == (404, "ask at /livez or /readyz\n")


def test_a_port_that_is_taken_is_told(health):
    with pytest.raises(ConfigError, match="Name another port or address"):
        Health(f"127.0.0.1:{health.port}")


@pytest.mark.parametrize("at", ["8080", ":8080", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
def test_what_is_no_address_is_refused(at, capsys):
    assert main(["tamiyo", "serve", "--bus", "memory:", f"--health={at}"]) == WRONG_INPUT
    assert "--health must be ADDRESS:PORT" in capsys.readouterr().err


def test_nobody_is_answered_unless_that_is_asked_for():
    command = parse(["tamiyo", "serve", "--bus", "memory:"])
    assert isinstance(command, TamiyoCommand)
    assert command.options["health"] is None
    assert [*command.options.values()] == ["memory:", "heuristic", None, "text", None]  # as serve takes them
