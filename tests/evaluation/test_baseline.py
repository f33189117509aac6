"""Baselines: their file, what they are made of, and two of one machine side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.evaluation.baseline.adaptation import Adaptation, Spread, adaptation_of
from esper.evaluation.baseline.beside import beside
from esper.evaluation.baseline.cells import WHAT, Cell, Setting
from esper.evaluation.baseline.performance import CellResult, PerformanceBaseline
from esper.evaluation.baseline.record import record
from esper.evaluation.growing import growing

NOTHING = Adaptation("nothing", 0, {}, None, None, None)
SPREAD = Spread(1.5, 1.0, 2.0, 3.0, 104)
RESULT = CellResult(
    32, 100, 128, dict.fromkeys(WHAT, SPREAD), 1e5, 10**8, None, None, 6588, {"device_bytes": "no GPU", "gpu": "no GPU"}
)
GROWN = Adaptation("here", 1, {"CULLED": 1, "FOSSILIZED": 1}, 0.5, SPREAD, SPREAD)
BASELINE = PerformanceBaseline("1", "c" * 40, True, {"cores": 2}, "m", Setting("cpu"), (RESULT,), GROWN)


@pytest.fixture(scope="module")
def recorded() -> PerformanceBaseline:
    return record([Cell(8, 16), Cell(8, 32)], Setting("cpu"), NOTHING, seconds=0.01)


def test_a_cell_is_measured_for_real(recorded):
    cell, _ = recorded.cells
    assert (cell.batch_size, cell.seeds, cell.channels) == (8, 16, 128)
    for what in WHAT:
        spread = cell.latency_ms[what]
        assert 0 < spread.p50 <= spread.p95 <= spread.p99
        assert spread.count >= 100
    assert cell.latency_ms["forward"].p50 < cell.latency_ms["step"].p50 < cell.latency_ms["live_step"].p50
    assert cell.samples_per_s > 0


def test_what_cannot_be_measured_is_null_with_a_reason(recorded):
    cell, _ = recorded.cells
    assert cell.device_bytes is None
    assert cell.gpu_utilisation is None
    assert set(cell.unmeasured) >= {"device_bytes", "gpu_utilisation"}


def test_more_seeds_have_more_state(recorded):
    few, many = (cell.state_bytes for cell in recorded.cells)
    assert 0 < few < many


def test_the_commit_is_that_of_the_sources(recorded):
    assert recorded.commit is None or len(recorded.commit) == 40
    assert (recorded.commit is None) == (recorded.is_clean is None)


@pytest.mark.parametrize("baseline", [BASELINE, replace(BASELINE, commit=None, is_clean=None, adaptation=NOTHING)])
def test_a_baseline_is_read_as_it_was_written(baseline, tmp_path):
    baseline.write(tmp_path / "one.json")
    assert PerformanceBaseline.read(tmp_path / "one.json") == baseline
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


def without(name):
    return lambda told: {key: value for key, value in told.items() if key != name}


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: [],
        lambda told: 3,
        lambda told: told | {"format": 2},
        lambda told: told | {"format": None},
        without("format"),
        without("cells"),
        lambda told: told | {"further": 1},
        lambda told: told | {"cells": {}},
        lambda told: told | {"cells": [3]},
        lambda told: told | {"cells": [told["cells"][0] | {"seeds": "100"}]},
        lambda told: told | {"cells": [told["cells"][0] | {"seeds": True}]},
        lambda told: told | {"cells": [told["cells"][0] | {"latency_ms": {"step": 3}}]},
        lambda told: told | {"setting": None},
        lambda told: told | {"is_clean": "yes"},
    ],
)
def test_a_damaged_baseline_or_one_of_another_format_is_refused_in_one_sentence(damage, tmp_path):
    path = tmp_path / "one.json"
    BASELINE.write(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match="'esper baseline record' writes one"):
        PerformanceBaseline.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(content, tmp_path):
    (tmp_path / "one.json").write_bytes(content)
    for path in (tmp_path / "one.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigError, match="'esper baseline record' writes one"):
            PerformanceBaseline.read(path)


def test_figures_of_one_machine_stand_side_by_side():
    faster = replace(BASELINE, cells=(replace(RESULT, samples_per_s=2e5),))
    rows = {row.name: (row.old, row.new) for row in beside(BASELINE, faster)}
    assert rows["samples_per_s"] == (1e5, 2e5)
    assert rows["step p99, ms"] == (3.0, 3.0)
    assert "device_bytes" not in rows


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(BASELINE, machine_id="other"), r"two machines.*compare --base cccccccccccc"),
        (replace(BASELINE, setting=Setting("cpu", 2)), "two settings"),
        (replace(BASELINE, cells=(replace(RESULT, seeds=1000),)), "no cell in common"),
    ],
)
def test_figures_that_say_nothing_about_each_other_are_refused(other, message):
    with pytest.raises(ConfigError, match=message):
        beside(BASELINE, other)


@pytest.mark.parametrize("setting", [Setting("cpu", 0), Setting("gpu"), Setting("tpu")])
def test_a_setting_that_cannot_be_measured_is_refused(setting):
    with pytest.raises(ConfigError):
        record([Cell(8, 16)], setting, NOTHING)


def test_growth_is_told_from_run_directories(task, tmp_path):
    """Of what is in the logs: whatever was not cancelled before its turn was tried."""
    config = GrowthConfig(seed=0)
    run = growing(
        task, config, epochs=30, batch_size=32, lr=5e-3, schedule="cosine", seed=0, directory=tmp_path / "run"
    )
    run.finish()
    outcomes = [report.outcome for report in run.session.field_reports]
    found = adaptation_of([tmp_path / "run"])
    tried = [name for name in outcomes if name != "CANCELLED"]
    assert sum(found.outcomes.values()) == len(outcomes) > 0
    assert found.success_rate == tried.count("FOSSILIZED") / len(tried)
    assert found.steps is not None
    assert found.steps.count == len(tried)
    assert found.steps.p50 > 0


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing of a run"):
        adaptation_of([Path(tmp_path)])
