"""What a store of flags that fails makes a run tell is what the metric counts."""

import warnings
from pathlib import Path

import pytest

from esper.observability.metrics.fold import RunState

flags = pytest.importorskip("esper.flags")


def failed(path: Path) -> int:
    """Of a run that begins with this store."""
    from esper.contracts.flags import told

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        resolved = flags.resolve("resnet-7", path, {})
    state = RunState("run")
    state.hear({"event": "flags", "time": 1.0, "step": 0, "model_id": resolved.model_id, "flags": told(resolved)})
    assert state.flags.keys() == resolved.values.keys()
    return state.flags_failed


def test_a_store_that_is_fine_fails_nothing_and_one_that_is_damaged_all_that_it_tells(tmp_path):
    path = tmp_path / "flags.json"
    flags.set_flag(path, "message_bus", "25%")
    flags.set_flag(path, "extended_lifecycle", "on")
    assert failed(path) == 0
    good = path.read_text()
    path.write_text(good[:20])
    assert failed(path) > 1
    for copy in tmp_path.glob("flags.json.good*"):
        copy.unlink()
    assert failed(path) == 4
    path.write_text(good)
    assert failed(path) == 0
