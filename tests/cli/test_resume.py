"""A run that was stopped, however rudely, ends as if it had not been."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from esper.cli import conclusion
from esper.cli.main import main
from esper.contracts.events import MEASURED
from tests import warm

STOPPED_RUN = """
import os, signal, sys
import esper.cli.run
from esper.checkpoint import store
from esper.cli.main import main
from esper.runtime.session import Session

esper.cli.run.CHECKPOINT_STEPS = 3
where, *line = sys.argv[1:]
write, step = store.write, Session.step

def kill_in_an_arm(directory, tree, number):
    written, now = write(directory, tree, number), tree["growth"]["round"]
    if now and now["arm_step"] and where == f"arm {now['arm']}":
        os.kill(os.getpid(), signal.SIGKILL)
    return written

def stop_in_a_step(session, batch):
    if where == "first step" and session.step_count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if where == "interrupt" and session.step_count == 16:
        signal.raise_signal(signal.SIGINT)
    return step(session, batch)

store.write, Session.step = kill_in_an_arm, stop_in_a_step
sys.exit(main(line))
"""


def _outcome(directory: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for what time it was and how long it took."""
    result = json.loads((directory / "result.json").read_text())
    result["rows"]["grown"].pop("seconds")
    logs = {}
    for name in ("metrics.jsonl", "audit.jsonl"):
        lines = [json.loads(line) for line in (directory / name).read_text().splitlines()]
        logs[name] = [
            {key: value for key, value in line.items() if key != "time"}
            for line in lines
            if line["event"] not in MEASURED
        ]
    return {"result": result, "weights": (directory / "model" / "weights.safetensors").read_bytes(), **logs}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, grows):
    directory = tmp_path_factory.mktemp("undisturbed")
    assert main(["run", "--config", grows, "--no-controls", "--output", str(directory)]) == 0
    return _outcome(directory)


@pytest.mark.parametrize(
    ("where", "code"),
    [
        pytest.param("first step", -signal.SIGKILL, marks=pytest.mark.long),
        ("arm 0", -signal.SIGKILL),
        pytest.param("interrupt", 130, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_ends_as_the_undisturbed_one(where, code, undisturbed, grows, tmp_path):
    """The line that began it goes on with it."""
    line = ["run", "--config", grows, "--no-controls", "--resume", "auto", "--output", str(tmp_path)]
    stopped = warm.run(["-c", STOPPED_RUN, where, *line])
    assert stopped.returncode == code, stopped.stderr
    assert not (tmp_path / "result.json").exists()
    assert "Traceback" not in stopped.stderr
    if code == 130:
        assert f"esper run --resume last --output {tmp_path}" in stopped.stdout
    assert main(line) == 0
    assert _outcome(tmp_path) == undisturbed


def test_a_control_that_was_finished_is_not_trained_again(grows, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    def forbidden(*_):
        raise AssertionError("host_on was trained twice")

    with monkeypatch.context() as patched:
        patched.setattr(conclusion, "static", interrupted)
        assert main(["run", "--config", grows, "--output", str(tmp_path)]) == 130
    assert (tmp_path / "progress.json").exists()
    monkeypatch.setattr(conclusion, "host_on", forbidden)
    assert main(["run", "--resume", "last", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert all(rows.values())
    assert not (tmp_path / "progress.json").exists()


@pytest.mark.long
def test_a_control_whose_samples_are_cut_is_trained_again(grows, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(conclusion, "static", interrupted)
        assert main(["run", "--config", grows, "--output", str(tmp_path)]) == 130
    (tmp_path / "samples.safetensors").write_bytes(b"")
    assert main(["run", "--resume", "last", "--output", str(tmp_path)]) == 0
    samples = load_file(tmp_path / "samples.safetensors")
    assert {name.partition(".")[0] for name in samples} == {"grown", "host_on", "static"}


def test_where_nothing_grew_the_static_network_has_the_samples_of_the_host(tmp_path):
    assert main(["run", "--epochs", "1", "--policy", "never", "--output", str(tmp_path)]) == 0
    samples = load_file(tmp_path / "samples.safetensors")
    assert (samples["static.loss"] == samples["host_on.loss"]).all()


def test_a_damaged_checkpoint_is_told_with_exit_code_1(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(conclusion.Conclusion, "conclude", interrupted)
    assert main(["run", "--epochs", "2", "--output", str(tmp_path)]) == 130
    for tensors in (tmp_path / "checkpoints").glob("*/tensors.safetensors"):
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 0xFF
        tensors.write_bytes(content)
    capsys.readouterr()
    assert main(["run", "--resume", "last", "--output", str(tmp_path)]) == 1
    assert "does not match its digest" in capsys.readouterr().err


def test_a_damaged_result_is_told_and_can_be_made_anew(tmp_path, capsys):
    assert main(["run", "--epochs", "2", "--no-controls", "--output", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "result.json").read_text())
    again = ["run", "--resume", "last", "--output", str(tmp_path)]
    for content in ("nonsense", "{}", "[1]", ""):
        (tmp_path / "result.json").write_text(content)
        assert main(again) == 2
        assert "result.json is damaged. Delete it, and go on with" in capsys.readouterr().err
    (tmp_path / "result.json").unlink()
    assert main(again) == 0
    anew = json.loads((tmp_path / "result.json").read_text())
    assert anew["rows"]["grown"] | {"seconds": 0} == whole["rows"]["grown"] | {"seconds": 0}


def test_damaged_progress_is_told(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(conclusion.Conclusion, "conclude", interrupted)
        assert main(["run", "--epochs", "2", "--output", str(tmp_path)]) == 130
    (tmp_path / "progress.json").write_text("{")
    assert main(["run", "--resume", "last", "--output", str(tmp_path)]) == 2
    assert "progress.json is damaged" in capsys.readouterr().err
