"""``esper tamiyo collect``, ``train`` and ``card``, and a run that the trained controller decides for."""

import json

import pytest

from esper.cli.main import main
from esper.learning import records
from esper.tamiyo.learned import weights
from tests.learning.planted import RECORDS

RUN = ["run", "--data", "digits", "--epochs", "6", "--no-controls", "--plain"]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    for one in RECORDS:
        records.write(one, folder)
    return folder


@pytest.fixture(scope="module")
def trained(collected, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    path, curves = folder / "tamiyo.safetensors", folder / "curves.jsonl"
    line = ["tamiyo", "train", "--records", str(collected), "--output", str(path), "--steps", "50"]
    assert main([*line, "--curves", str(curves)]) == 0
    return path, curves


def test_one_task_is_collected_and_left_alone_afterwards(tmp_path, capsys):
    line = ["tamiyo", "collect", "--records", str(tmp_path), "--tasks", "1", "--first", "10005", "--episodes", "1"]
    assert main(line) == 0
    (record,) = records.read([tmp_path])
    assert (record.family, record.seed, len(record.tried)) == ("trees", 10005, 1)
    assert record.heuristic is not None
    assert "1 records were written" in capsys.readouterr().out
    assert main(line) == 0
    assert "0 records were written" in capsys.readouterr().out


def test_weights_are_trained_and_tell_of_themselves(trained, capsys):
    path, curves = trained
    assert main(["tamiyo", "card", str(path)]) == 0
    told = capsys.readouterr().out
    assert "planted 20" in told
    assert "heuristic_flops 0.2" in told
    phases = {json.loads(line)["phase"] for line in curves.read_text().splitlines()}
    assert "judgement" in phases


def test_it_goes_on_learning_from_its_own_choices_and_from_where_it_was(trained, tmp_path, capsys):
    path, _ = trained
    line = ["tamiyo", "improve", "--from", str(path), "--output", str(tmp_path), "--tasks", "1", "--first", "10005"]
    assert main([*line, "--updates", "1", "--seconds", "0.001"]) == 0
    assert not (tmp_path / "weights.safetensors").exists()
    assert main([*line, "--updates", "1"]) == 0
    assert "reward" in capsys.readouterr().out
    network, card = weights.load(tmp_path / "weights.safetensors")
    assert network.shape.chooses_by == "policy"
    assert card["updates"] == 1


def test_a_run_is_decided_by_trained_weights(trained, tmp_path, capsys):
    path, _ = trained
    assert main([*RUN, "--policy", f"learned:{path}", "--output", str(tmp_path / "run")]) == 0
    assert "The heuristic decides in its place" not in capsys.readouterr().out


def test_a_run_whose_weights_cannot_be_read_goes_on_with_the_heuristic_and_says_so(tmp_path, capsys):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    line = [*RUN, "--policy", f"learned:{tmp_path / 'bad.safetensors'}", "--output", str(tmp_path / "run")]
    assert main(line) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "holds no weights that can be read" in told
    assert "The heuristic decides in its place." in told


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (["card"], "needs FILE"),
        (["card", "missing.safetensors"], "There are no weights"),
        (["train", "--records", "x"], "needs --output"),
        (["train", "--records", "x", "--output", "w.pt"], "Weights go into a .safetensors file"),
        (["train", "--records", "x", "--output", "w.safetensors"], "There are no records in x"),
        (["train", "--records", "x", "--output", "w.safetensors", "--bus", "memory:"], "--bus is of"),
        (["collect", "--records", "x", "--records", "y"], "name --records once"),
        (["collect", "--records", "x", "--tasks", "0"], "--tasks must be at least 1"),
        (["collect", "--records", "x", "--first", "-1"], "--first must be at least 0"),
        (["serve"], "needs --bus"),
        (["improve"], "needs --output"),
        (["improve", "--output", "x", "--from", "missing.safetensors"], "There are no weights"),
        (["train", "--records", "x", "--output", "w.safetensors", "--from", "y"], "--from is of"),
    ],
)
def test_a_wrong_line_is_refused_with_the_remedy(line, wrong, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tamiyo", *line]) == 2
    assert wrong in " ".join(capsys.readouterr().err.split())


def test_a_spoilt_record_is_named(collected, tmp_path, capsys):
    (tmp_path / "00000001.record").write_bytes(b"nonsense")
    line = ["tamiyo", "train", "--records", str(tmp_path), "--output", str(tmp_path / "w.safetensors")]
    assert main(line) == 2
    assert "00000001.record is no record that can be read" in " ".join(capsys.readouterr().err.split())
