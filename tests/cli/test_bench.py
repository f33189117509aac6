"""``esper bench``: tables of real measurements."""

import json

import pytest
import torch

from esper.cli.commands.bench import SECTIONS as NAMES
from esper.cli.main import main
from esper.evaluation.bench import dormant, grafts, seeds, sweeps
from esper.evaluation.bench.dormant import Size
from esper.evaluation.bench.sections import SECTIONS


def test_a_table_with_its_targets_is_shown_and_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dormant, "CPU", (Size(8, 1024),))
    file = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--device", "cpu", "--only", "dormant,step", "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| 1024 x 1024, 8 rows, float32 | forward and backward | one thread |" in out
    assert "step: nothing to measure on cpu" in out
    (section,) = json.loads(file.read_text())["sections"]
    assert section["title"] == "A layer with 1,000 dormant seeds"
    assert len(section["goals"]) == 3


@pytest.mark.parametrize("name", ["seeds", "grafts", "sweeps"])
def test_parts_that_a_cpu_can_measure_end_with_a_table(name, monkeypatch, capsys):
    monkeypatch.setattr(grafts, "SMALL_ROWS", 4)
    monkeypatch.setattr(sweeps, "SMALL", (4, 64, 32, torch.float32))
    monkeypatch.setattr(seeds, "QUICK_NUMBERS", (2, 8))
    assert main(["bench", "--quick", "--device", "cpu", "--only", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) >= 3
    assert len({line.count("|") for line in table[:3]}) == 1


def test_the_command_knows_every_part():
    assert tuple(SECTIONS) == NAMES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--only", "dormnt"], "there is no such part. Did you mean 'dormant'?"),
        (["--output", "nowhere/bench.json"], "there is no directory nowhere. Make it first."),
        (["--device", "cuda:77"], "There is no device 'cuda:77' here"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(capsys, line, message):
    assert main(["bench", *line]) == 2
    assert message in capsys.readouterr().err
