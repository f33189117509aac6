"""What docs/migrating.md shows is what the code and the results say."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from benchmarks.rollout_kit.legacy import markdown
from esper.cli.main import main
from esper.flags import set_flag
from esper.legacy.states import TRANSITIONS
from esper.migration.hybrid import _INSTEAD, DECIDING

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
RESULTS = ROOT / "benchmarks" / "results" / "rollout_kit"


@pytest.mark.filterwarnings("ignore:request_germination:DeprecationWarning")
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x, y = torch.randn(600, 6), torch.randint(3, (600,))
    training = {
        "loss": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        "evaluate": lambda model: esper.Evaluation(losses=F.cross_entropy(model(x), y, reduction="none")),
        "planned_steps": 100,
    }
    for name in DECIDING:
        set_flag("flags.json", name, "on")
    names = {"x": x, "training": training, "train_old": lambda: None, "nn": nn, "torch": torch}
    first, second, third = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(first, names)
    old = names["model"]
    new = dict(names)
    exec(second, new)
    assert new["router"].counts("extended_lifecycle")["new"] == 1
    assert main(["migrate", "model.safetensors"]) == 0
    names["esper"] = esper
    exec(third, names)
    assert torch.equal(names["model"](x), old(x))


def test_the_states_and_the_calls_are_all_told():
    for state, targets in TRANSITIONS.items():
        told = next(line for line in PAGE.splitlines() if line.startswith(f"| {state.name} |") and line.count("|") == 5)
        assert set(re.findall(r"[A-Z]{5,}", told.split("|")[3])) == {target.name for target in targets}
    assert all(f"layer.{name}(" in PAGE for name in _INSTEAD)


def test_the_table_of_times_is_the_recorded_result():
    assert markdown(json.loads((RESULTS / "legacy.json").read_text())["result"]) in PAGE


def test_the_recorded_trial_found_no_migration_that_did_harm():
    result = json.loads((RESULTS / "migration.json").read_text())["result"]
    assert sum(sum(counts.values()) for counts in result["files"].values()) == 5000
    assert {outcome for counts in result["files"].values() for outcome in counts} <= {"migrated", "refused"}
    assert (result["kills"]["changed"], result["kills"]["not mended"]) == (0, 0)
    assert "damaged" not in result["kills"]
    migrated, refused = (sum(one.get(name, 0) for one in result["files"].values()) for name in ("migrated", "refused"))
    assert f"{migrated} were migrated, with equal outputs to the bit, and {refused:,} refused" in PAGE
