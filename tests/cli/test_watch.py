"""``esper watch``: what is wrong is said, and a real run is followed by a real process until it is told to end."""

import json
import re
import socket
import sys

import httpx2
import pytest

from esper.cli.main import main
from tests.cli.test_bus import esper, wait_for

SECRET = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "needs run directories or --bus URL"),
        (["runs", "--bus", "memory:a"], "needs run directories or --bus URL"),
        (["nowhere"], "There is no directory nowhere"),
        (["file"], "file is a file"),
        (["runs", "--port", "70000"], "--port must be 0 to 65535, not 70000."),
        (["runs", "--port", "{taken}"], "cannot be served at 127.0.0.1:{taken}"),
        (["runs", "--host", "nowhere.invalid"], "cannot be served at nowhere.invalid"),
        (["runs", "--token", "file"], "--token is for commands, which go over a bus"),
        (["--bus", "memory:a", "--token", "nowhere"], "The token file nowhere cannot be read"),
        (["--bus", "memory:a", "--token", "file"], "chmod 600"),
        (["--bus", "reddis://here"], "Did you mean 'redis'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text(SECRET)
    (tmp_path / "file").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["watch", *(word.format(taken=port) for word in line)]) == 2
    said = capsys.readouterr().err
    assert message.format(taken=port) in said
    assert len(said.splitlines()) == 1
    assert SECRET not in said


def test_without_its_libraries_the_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sse_starlette.sse", None)
    for name in ("esper.observability.live.server", "esper.cli.watching"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["watch", str(tmp_path)]) == 2
    assert "esper-morphogenetic[run,watch]" in capsys.readouterr().err


def test_a_run_is_followed_and_rolled_back_from_the_page(tmp_path):
    """Real processes on a bus: the run's own answer comes back."""
    url, token = f"sqlite:{tmp_path / 'bus.db'}", tmp_path / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    log = tmp_path / "watch"
    watch = esper("watch", "--bus", url, "--token", str(token), "--port", "0", output=log)
    run = esper(
        *("run", "--bus", url, "--epochs", "100000", "--no-controls", "--plain", "--output", str(tmp_path / "run")),
        output=tmp_path / "log",
    )
    try:
        wait_for(log, "\n")
        at = re.search(r"http://127.0.0.1:\d+", log.read_text()).group()
        with httpx2.stream("GET", f"{at}/events", timeout=300) as stream:
            asked = None
            for line in stream.iter_lines():
                content = json.loads(line[6:]) if line.startswith("data: {") else {}
                id_ = content.get("run")
                if id_ is not None and asked is None:
                    headers = {"Authorization": f"Bearer {SECRET}", "Origin": at}
                    command = {"action": "rollback", "fields": {"run_id": id_}}
                    asked = httpx2.post(f"{at}/commands", json=command, headers=headers, timeout=60)
                    assert asked.status_code == 202
                if re.search(r"rollback: (done at step|refused)", content.get("parts", {}).get("answers", "")):
                    break
        watch.terminate()
        assert watch.wait(timeout=30) == 0
        assert "Traceback" not in log.read_text()
    finally:
        for process in (watch, run):
            process.kill()
            process.wait()
