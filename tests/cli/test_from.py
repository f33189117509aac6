"""``esper run --from``: a run begins with trained weights, and its controls are fair to them."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from esper.cli import conclusion
from esper.cli.main import main
from esper.contracts.events import MEASURED
from esper.evaluation.controls import Setting, host_on, static
from esper.tasks.digits import digits

BRIEF = ["--epochs", "2", "--policy", "never"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights that a run without growth ended with."""
    directory = tmp_path_factory.mktemp("trained")
    assert main(["run", *BRIEF, "--no-controls", "--output", str(directory)]) == 0
    return directory / "model" / "weights.safetensors"


def _result(directory) -> dict:
    return json.loads((directory / "result.json").read_text())


def _audit(directory) -> list[dict]:
    """All that happened, but for what was measured of the process."""
    lines = [json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["event"] not in MEASURED]
    return [{key: value for key, value in line.items() if key != "time"} for line in told]


@pytest.fixture(scope="module")
def went_on(trained, tmp_path_factory):
    """A run in which nothing grows, from those weights, with controls."""
    directory = tmp_path_factory.mktemp("went_on")
    assert main(["run", *BRIEF, "--from", str(trained), "--output", str(directory)]) == 0
    return directory


def test_the_host_begins_with_the_weights(trained, tmp_path, monkeypatch):
    first = {}

    def wrap(model, config, example):
        first.update({name: value.clone() for name, value in model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("esper.evaluation.growing.wrap", wrap)
    assert main(["run", "--from", str(trained), "--output", str(tmp_path)]) == 130
    assert all(torch.equal(first[name], value) for name, value in load_file(trained).items())


def test_the_host_trained_on_goes_on_from_the_weights_and_static_is_new(trained, went_on):
    rows, task = _result(went_on)["rows"], digits(0)
    budget, size = rows["grown"]["train_flops"], rows["grown"]["parameters"]
    setting = Setting(batch_size=32, seed=0, split_seed=0)
    for name, row in {
        "host_on": host_on(task, budget, setting, load_file(trained)),
        "static": static(task, budget, size, setting),
    }.items():
        assert rows[name] | {"seconds": 0} == row.to_dict() | {"seconds": 0}
    # negative control: the two differ although nothing grew
    assert rows["host_on"]["parameters"] == rows["static"]["parameters"]
    assert rows["host_on"]["test_loss"] < rows["static"]["test_loss"]


def test_everything_that_is_told_of_the_run_says_so(trained, went_on):
    assert yaml.safe_load((went_on / "config.yaml").read_text())["weights"] == str(trained)
    assert _result(went_on)["weights"] == str(trained)
    said = (went_on / "model" / "README.md").read_text()
    assert f"The run began with trained weights, from `{trained}`. The host trained on goes on from the same" in said
    assert "began with" in (went_on / "report.html").read_text()


def test_weights_of_a_grown_network_are_refused_with_a_reason(trained, grows, tmp_path, capsys):
    line = ["run", "--config", grows, "--from", str(trained), "--no-controls", "--output", str(tmp_path / "grown")]
    assert main(line) == 0
    assert "FOSSILIZED" in [one["outcome"] for one in _result(tmp_path / "grown")["lifecycles"]]
    capsys.readouterr()
    weights = tmp_path / "grown" / "model" / "weights.safetensors"
    assert main(["run", "--from", str(weights), "--output", str(tmp_path / "again")]) == 2
    assert "are those of a network that has grown" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("host", [["--host", "cnn"], ["--data", "mnist1d"]])
def test_weights_of_another_host_or_task_are_refused_and_nothing_is_written(host, trained, tmp_path, capsys):
    assert main(["run", *host, "--from", str(trained), "--output", str(tmp_path / "run")]) == 2
    assert f"--from: {trained} do not fit the host: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_needs_the_file_no_more(trained, grows, tmp_path, monkeypatch):
    """Neither to train on, nor for its controls."""

    def interrupted(*_):
        raise KeyboardInterrupt

    def begin(name):
        copy = tmp_path / f"{name}.safetensors"
        save_file(load_file(trained), copy)
        return copy, ["run", "--config", grows, "--from", str(copy), "--output", str(tmp_path / name)]

    _, line = begin("whole")
    assert main(line) == 0
    copy, line = begin("stopped")
    with monkeypatch.context() as patched:
        patched.setattr(conclusion, "host_on", interrupted)
        assert main(line) == 130
    copy.unlink()
    assert main(["run", "--resume", "last", "--output", str(tmp_path / "stopped")]) == 0
    results = [_result(tmp_path / name) for name in ("whole", "stopped")]
    for result in results:
        for row in [*result["rows"].values(), result]:
            row.pop("seconds", row.pop("weights", None))
    assert results[0] == results[1]
    assert _audit(tmp_path / "whole") == _audit(tmp_path / "stopped")


def test_a_run_is_not_resumed_with_other_weights(went_on, capsys):
    assert main(["run", "--resume", "last", "--output", str(went_on), "--from", "other.safetensors"]) == 2
    assert "was started with weights " in capsys.readouterr().err


MODULE = """
from torch import nn

def net(inputs, classes):
    return nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes))
"""


def test_a_host_of_ones_own_begins_with_its_state_dict(tmp_path, monkeypatch):
    (tmp_path / "from_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "from_nets", raising=False)
    import from_nets

    model = from_nets.net(64, 10)
    model[1].running_mean += 3
    save_file(model.state_dict(), "mine.safetensors")
    line = ["run", "--host", "from_nets:net", "--from", "mine.safetensors", *BRIEF, "--output", "out"]
    assert main(line) == 0
    kept = load_file("out/first_weights.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    result = _result(tmp_path / "out")
    assert result["rows"]["host_on"] is not None
    assert result["reasons"] == {"static": "the host's factory takes no width_factor"}
