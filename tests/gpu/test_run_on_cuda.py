"""``esper run --device cuda --precision bf16`` from the first batch to the report, growth and controls included."""

import json

import pytest
import torch

from esper.cli.main import main
from esper.runtime.session import Session
from esper.tasks.catalogue import load_task
from esper.tasks.placed import placed
from tests.tasks.texts import write_texts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GROWS = "growth: {compare: steps, choice: best, grow_at: 0.1, round_fraction: 0.15, max_rounds: 1}"


def test_a_run_on_a_folder_of_texts_grows_and_ends_on_the_gpu(tmp_path, monkeypatch):
    seen, step = set(), Session.step

    def watched(session, batch):
        seen.update(one.device.type for one in batch)
        return step(session, batch)

    monkeypatch.setattr(Session, "step", watched)
    (tmp_path / "grows.yaml").write_text(GROWS)
    line = ["run", "--plain", "--data", f"text:{write_texts(tmp_path)}", "--device", "cuda", "--precision", "bf16"]
    line += ["--host-settings", "width=16,blocks=2,context=16", "--epochs", "10", "--steps-per-epoch", "10"]
    line += ["--batch-size", "8", "--config", str(tmp_path / "grows.yaml"), "--output", str(tmp_path / "run")]
    assert main(line) == 0
    assert seen == {"cuda"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["device"].startswith("cuda:0 (")
    assert result["precision"] == "bf16"
    assert result["lifecycles"]
    assert all(row["test_loss"] < 6 for row in result["rows"].values())
    model = torch.export.load(tmp_path / "run" / "model" / "model.pt2").module()
    assert {one.device.type for one in model.state_dict().values()} == {"cpu"}


def test_a_host_begins_with_the_weights_that_it_has_on_the_cpu():
    task = load_task("digits", 0, "mlp")
    hosts = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        hosts.append(placed(task, device).make_host().cpu().state_dict())
    assert all(torch.equal(value, hosts[1][name]) for name, value in hosts[0].items())
