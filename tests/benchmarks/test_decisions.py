"""Decisions are timed on what records hold, waiting and acting apart."""

import json

import pytest

from benchmarks.controller import decisions
from esper.learning.records import write
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.tokens import tokens
from tests.learning.planted import CONFIG, record
from tests.tamiyo.learned.saying import saved
from tests.tamiyo.seen import NOW


@pytest.mark.parametrize(("expected", "does"), [(0.1, "acts"), (-0.1, "waits")])
def test_every_boundary_of_the_records_is_decided(tmp_path, capsys, expected, does):
    records = tmp_path / "records"
    records.mkdir()
    write(record(0, boundaries=3), records)
    known = tokens(NOW, CONFIG, legal_actions(NOW, CONFIG))
    weights = saved(tmp_path / "weights.safetensors", known, adopt=5.0, adopted=expected, reach=1e9)
    line = [str(records), "--weights", str(weights), "--output", str(tmp_path / "found.json")]
    assert decisions.main(line) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["decisions"]
    assert (found["does"], found["decisions"]) == (does, 3)
    assert 0 < found["median_ms"] <= found["p95_ms"]
    assert f"| {does}" in capsys.readouterr().out


def test_records_that_are_not_there_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        decisions.main([str(tmp_path), "--output", str(tmp_path / "found.json")])
    assert "There are no records" in capsys.readouterr().err
