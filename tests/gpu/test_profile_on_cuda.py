"""``esper profile`` and debug mode on a GPU."""

import pytest
import torch

from esper.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_table_tells_what_the_device_did(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ESPER_DEBUG", "1")
    assert main(["profile", "--device", "cuda", "--steps", "8", "--trace", str(tmp_path / "trace.json")]) == 0
    out = capsys.readouterr().out
    assert "device us" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("  esper: grafts forward")]
    calls, _, device_us = map(float, row[-3:])
    assert calls == 1
    assert device_us > 0
