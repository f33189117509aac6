"""The live page over HTTP: who may read it, and who may send commands."""

import socket
import threading

import pytest
from starlette.testclient import TestClient

from esper.contracts.errors import BusUnavailableError, ConfigError
from esper.observability.live.directories import DirectoryRuns
from esper.observability.live.feed import Runs
from esper.observability.live.server import MOST_BYTES, Asking, LiveServer, application, is_own
from esper.observability.live.tokens import Token

SECRET = "s3cret-s3cret-s3cret"
OWN = "http://127.0.0.1:8321"
ROLLBACK = {"action": "rollback", "fields": {"run_id": "mine"}}


@pytest.fixture
def runs(tmp_path):
    return Runs(DirectoryRuns([tmp_path]))


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def asked(runs, token_file):
    """A client of a server that takes commands, what was sent, and what was said."""
    sent, said = [], []

    def send(action, fields):
        if action == "away":
            raise BusUnavailableError("The bus is away.")
        if action != "rollback":
            raise ConfigError("There is no such command.")
        sent.append((action, fields))
        return "id-1"

    app = application(runs, "127.0.0.1", threading.Event(), Asking(Token(token_file, said.append), send))
    return TestClient(app, base_url=OWN), sent, said


def post(client, content=ROLLBACK, *, token=SECRET, origin=OWN, **headers):
    given = {"Origin": origin, "Authorization": f"Bearer {token}", **headers}
    headers = {name: value.encode("latin-1") for name, value in given.items() if value}
    return client.post("/commands", json=content, headers=headers)


def test_the_page_asks_for_nothing_elsewhere(runs):
    answer = TestClient(application(runs, "127.0.0.1", threading.Event()), base_url=OWN).get("/")
    assert answer.status_code == 200
    assert "default-src 'none'; connect-src 'self'" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert "http://" not in answer.text.split("<script>")[0]


@pytest.mark.parametrize(
    ("header", "is_ours"),
    [
        *(("127.0.0.1:8321", True), ("localhost:8321", True), ("[::1]:8321", True), ("192.168.0.7", True)),
        *(("desk:8321", True), ("DESK", True), ("evil.example:8321", False), ("127.0.0.1.evil.example", False)),
        *(("", False), ("localhost.evil.example", False)),
    ],
)
def test_names_of_others_that_lead_here_are_refused(runs, header, is_ours):
    """A page of theirs could read ours under such a name."""
    assert is_own(header, "desk") == is_ours
    client = TestClient(application(runs, "desk", threading.Event()), base_url=OWN)
    assert client.get("/", headers={"Host": header}).status_code == (200 if is_ours else 400)


def test_without_a_token_there_is_no_command_route(runs):
    client = TestClient(application(runs, "127.0.0.1", threading.Event()), base_url=OWN)
    assert post(client).status_code == 404
    assert 'id="commands"' not in client.get("/").text


def test_a_command_with_the_token_is_sent(asked):
    client, sent, _ = asked
    answer = post(client)
    assert (answer.status_code, answer.json()) == (202, {"id": "id-1"})
    assert sent == [("rollback", {"run_id": "mine"})]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        *(({"token": "wrong"}, 403), ({"token": ""}, 403), ({"token": SECRET + "x"}, 403), ({"token": "\xe9"}, 403)),
        ({"token": None, "Authorization": SECRET}, 403),
        *(({"origin": None}, 403), ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403)),
        *(({"content": [1]}, 400), ({"content": {"action": "rollback"}}, 400)),
        ({"content": {"action": "other", "fields": {}}}, 400),
        ({"content": {"action": "rollback", "fields": {"reason": "x" * MOST_BYTES}}}, 400),
        ({"content": {"action": "away", "fields": {}}}, 503),
    ],
)
def test_other_commands_are_refused_with_a_sentence(asked, given, status):
    client, sent, _ = asked
    answer = post(client, **given)
    assert answer.status_code == status
    assert answer.json()["said"].endswith(".")
    assert sent == []


def test_the_token_in_an_address_is_worth_nothing(asked):
    client, sent, _ = asked
    answer = client.post(f"/commands?token={SECRET}", json=ROLLBACK, headers={"Origin": OWN})
    assert (answer.status_code, sent) == (403, [])


def test_a_wrong_token_is_said_once(asked):
    client, _, said = asked
    for _ in range(3):
        post(client, token="wrong")
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o600, "cannot be read"),
        (SECRET, 0o640, "forbid it with chmod 600"),
        (SECRET, 0o604, "forbid it with chmod 600"),
        ("short", 0o600, "fewer than 16 characters"),
        ("", 0o600, "fewer than 16 characters"),
    ],
)
def test_a_token_file_that_protects_nothing_is_refused(tmp_path, content, mode, message):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        Token(path)


def test_events_are_told_until_the_server_ends(tmp_path):
    import httpx2

    server = LiveServer(DirectoryRuns([tmp_path]), 0)
    with httpx2.stream("GET", f"http://127.0.0.1:{server.port}/events", timeout=30) as stream:
        lines = stream.iter_lines()
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert "event: all" in (line for line in lines)
        server.close()
        assert not any(line.startswith("event") for line in lines)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot be served at 127.0.0.1:{port}.*Name another port"):
            LiveServer(DirectoryRuns([tmp_path]), port)
