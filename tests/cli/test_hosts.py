"""``esper run`` with every kind of host and data."""

import json
import sys

import numpy as np
import pytest

from esper.cli.main import main
from esper.contracts.lifecycle import OUTCOMES
from tests import warm

BRIEF = ["--epochs", "8", "--no-controls", "--min-targets", "0"]
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, {}; "
MODULE = """
import torch
from torch import nn

def fixed(inputs, classes):
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, classes))

def scalable(inputs, classes, width_factor=1.0):
    width = max(1, round(6 * width_factor))
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))

def deaf(inputs, classes, width_factor=1.0):
    return fixed(inputs, classes)

def compiled(inputs, classes):
    return torch.compile(fixed(inputs, classes), backend="eager")

class Quoted(nn.Sequential):  # torch writes a graph of it, but cannot read it again
    def __init__(self, inputs, classes):
        super().__init__()
        self.add_module("it's " + chr(34) + "quoted" + chr(34), nn.Linear(inputs, classes))

class Sums(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
    def forward(self, x):
        return self.layer(x) if float(x.sum()) > -1e30 else x

def few(inputs):
    return nn.Linear(inputs, 3)
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A working directory with a module, and nothing else; the module is forgotten afterwards."""
    (tmp_path / "cli_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    return tmp_path


def _result(directory, line) -> dict:
    assert main(["run", *line, "--output", str(directory / "out")]) == 0
    result = json.loads((directory / "out" / "result.json").read_text())
    assert all(one["outcome"] in {state.name for state in OUTCOMES} for one in result["lifecycles"])
    return result


@pytest.mark.long
def test_a_cnn_learns_signals(directory):
    result = _result(directory, ["--data", "mnist1d", "--host", "cnn", *BRIEF])
    assert (result["task"], result["host"]) == ("mnist1d", "cnn")
    assert result["rows"]["grown"]["test_metric"] > 0.5
    assert result["lifecycles"]


def test_a_transformer_learns_a_text_and_its_files_write_on(directory):
    (directory / "times.txt").write_text("".join(TEXT.format(number) for number in range(300)))
    line = ["--data", "text:times.txt", *BRIEF, "--steps-per-epoch", "10", "--layers", "blocks.0"]
    result = _result(directory, line)
    assert (result["task"], result["host"], result["metric"]) == ("times", "gpt", "accuracy")
    assert result["rows"]["grown"]["test_loss"] < 1.5
    assert result["planned_steps"] == 80
    assert result["lifecycles"]
    model = directory / "out" / "model"
    names = {entry.name for entry in model.iterdir()}
    assert names == {"README.md", "model.pt2", "vocabulary.json", "weights.safetensors"}
    code = (model / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = "prompt = 'It was the '\n" + code + "\nimport sys\nassert 'esper' not in sys.modules"
    done = warm.run(["-c", code], folder=model)
    assert done.returncode == 0, done.stderr
    written = done.stdout
    assert len(written.rstrip("\n")) >= 200
    assert written.startswith("It was the ")


@pytest.mark.parametrize(("factory", "reason"), [("fixed", "takes no width_factor"), ("deaf", "however large")])
def test_static_is_left_out_with_a_reason_where_the_host_cannot_be_scaled(directory, factory, reason, grows, capsys):
    result = _result(directory, ["--config", grows, "--host", f"cli_nets:{factory}"])
    grown, host_on, static = (result["rows"][name] for name in ("grown", "host_on", "static"))
    assert grown["parameters"] > host_on["parameters"] == 460
    assert static is None
    assert reason in result["reasons"]["static"]
    assert reason in capsys.readouterr().out


def test_static_has_the_grown_size_where_the_host_can_be_scaled(directory, grows):
    result = _result(directory, ["--config", grows, "--host", "cli_nets:scalable"])
    grown, static = result["rows"]["grown"], result["rows"]["static"]
    assert abs(static["parameters"] / grown["parameters"] - 1) < 0.06  # widths are whole: one unit is 75 parameters


@pytest.mark.parametrize(("host", "layers"), [("Sums", "layer"), ("Quoted", "*quoted*")])
def test_a_host_of_which_torch_can_make_no_graph_is_stored_without_one(host, layers, directory, capsys):
    _result(directory, ["--host", f"cli_nets:{host}", "--policy", "never", "--layers", layers, *BRIEF])
    assert "stored without a graph" in capsys.readouterr().out
    model = directory / "out" / "model"
    assert (model / "weights.safetensors").exists()
    assert not (model / "model.pt2").exists()
    assert "missing, since torch.export failed" in (model / "README.md").read_text()


def test_a_table_with_header_and_labels_of_text_is_learned(directory):
    x = np.random.default_rng(0).normal(size=(300, 3))
    lines = [f"{a:.4f};{b:.4f};{c:.4f};{'up' if a > b else 'down'}" for a, b, c in x]
    (directory / "mine.csv").write_text("first;second;third;way\n" + "\n".join(lines))
    result = _result(directory, ["--data", "mine.csv", *BRIEF])
    assert result["task"] == "mine"
    assert result["rows"]["grown"]["test_metric"] > 0.7
    assert json.loads((directory / "out" / "model" / "labels.json").read_text()) == ["down", "up"]


def test_the_policy_decides(directory):
    assert _result(directory, ["--policy", "never", *BRIEF])["lifecycles"] == []


def test_layers_and_seeds_are_those_asked_for(directory):
    line = ["--layers", "2", "--seeds-per-layer", "3", "--blueprints", "bottleneck_mlp", *BRIEF]
    assert {one["layer_id"] for one in _result(directory, line)["lifecycles"]} == {"2"}


def test_what_grows_in_colonies_alone_fits_a_host_that_has_one(directory):
    line = ["--colonies", "*", "--blueprints", "widen", "--policy", "never", "--epochs", "1", "--no-controls"]
    assert _result(directory, line)["lifecycles"] == []


BAD_RUNS = {
    "no module of that name": (["--host", "cli_net:few"], "there is no module 'cli_net'"),
    "logits that do not fit": (["--host", "cli_nets:few"], "the labels want logits of shape [4, 10]"),
    "a compiled host": (["--host", "cli_nets:compiled"], "Wrap the bare model first"),
    "no blueprint that fits": (["--blueprints", "conv_bottleneck"], "No blueprint fits any place of the host"),
    "a colony that is not there": (["--colonies", "blocks.*"], "'blocks.*' matches no colony of the model. Valid: *."),
    "a text that is too short": (["--data", "text:cli_nets.py"], "at least 5,000 are needed"),
    "a layer that is not there": (["--host", "cnn", "--layers", "stage"], "'stage' matches no module"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_run_that_cannot_be_ends_with_one_message_and_writes_nothing(directory, case, capsys):
    line, says = BAD_RUNS[case]
    assert main(["run", *line]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert not (directory / "runs").exists()
