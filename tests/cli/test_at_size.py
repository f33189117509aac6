"""``esper run`` on a folder of texts, with a host of a given size, on a device and in a precision."""

import json
import re

import pytest
import torch
import yaml

from esper.cli.main import main
from tests.tasks.texts import write_texts

SHORT = ["--plain", "--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "8", "--max-rounds", "0"]
SIZE = "width=8,blocks=1,context=16"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return f"text:{write_texts(tmp_path_factory.mktemp('data'))}"


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """A run in bfloat16, with controls: its directory."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    line = ["run", "--data", texts, "--host-settings", SIZE, "--precision", "bf16", "--device", "cpu", *SHORT]
    assert main([*line, "--output", str(directory)]) == 0
    return directory


def test_device_precision_and_settings_are_told_and_stored(finished):
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    result = json.loads((finished / "result.json").read_text())
    for found in (stored, result):
        assert found["host_settings"] == {"width": 8, "blocks": 1, "context": 16}
        assert (found["device"], found["precision"]) == ("cpu", "bf16")
    report = (finished / "report.html").read_text()
    for said in ("host_settings", "precision", "bf16"):
        assert said in report
    card = (finished / "model" / "README.md").read_text()
    assert "| device | cpu, in bf16 |" in card
    assert "| its settings | `width 8, blocks 1, context 16` |" in card


def test_static_has_the_size_of_the_settings(finished):
    rows = json.loads((finished / "result.json").read_text())["rows"]
    assert rows["static"]["parameters"] == rows["grown"]["parameters"] == rows["host_on"]["parameters"]
    assert rows["static"]["parameters"] == 256 * 8 + 16 * 8 + (2 * 16 + 4 * 8 * 9 + 32 * 17 + 8) + 16 + 9 * 256


def test_the_exported_model_writes_as_its_card_says(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished / "model")
    (usage,) = re.findall(r"```python\n(.*?)```", (finished / "model" / "README.md").read_text(), flags=re.DOTALL)
    exec(usage, {"prompt": "<001>abc"})
    assert capsys.readouterr().out.startswith("<001>abc")
    assert not (finished / "model" / "vocabulary.json").exists()


def test_a_run_that_is_resumed_keeps_device_precision_and_size(finished, capsys):
    for line, said in {
        "--device cuda": "was started with device cpu, not cuda. Leave device out",
        "--precision fp32": "was started with precision bf16, not fp32",
        "--host-settings width=16": "was started with host_settings",
    }.items():
        assert main(["run", "--resume", "last", "--output", str(finished), *line.split()]) == 2
        assert said in capsys.readouterr().err
    assert main(["run", "--resume", "last", "--output", str(finished), "--host-settings", SIZE]) == 0


def test_a_run_of_a_device_that_is_gone_is_not_resumed_elsewhere(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = tmp_path / "run"
    assert main(["run", "--data", texts, "--host-settings", SIZE, *SHORT, "--no-controls", "--output", str(run)]) == 0
    (run / "result.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:1"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["run", "--resume", "last", "--output", str(run)]) == 2
    said = "was started on cuda:1 and goes on exactly only there, but torch finds no such device here"
    assert said in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_auto_is_stored_as_the_device_that_it_was(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = ["run", "--data", texts, "--host-settings", SIZE, *SHORT, "--no-controls", "--device", "auto"]
    assert main([*line, "--output", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("run", "profile"):
        assert main([command, "--data", texts, "--device", "cuda"]) == 2
        assert "There is no device 'cuda' here: torch finds no GPU. Take cpu, or auto." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
