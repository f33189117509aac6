"""A baseline on a GPU: latencies until it is done, its memory, and two sides in turns."""

from pathlib import Path

import pytest
import torch

import esper
from esper.evaluation.baseline.adaptation import Adaptation
from esper.evaluation.baseline.cells import Cell, Setting
from esper.evaluation.baseline.compare import Rules, compare
from esper.evaluation.baseline.record import record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SOURCES = Path(esper.__file__).parents[1]


def test_memory_and_utilisation_of_the_device_are_measured_or_it_is_said_why_not():
    (cell,) = record(
        [Cell(256, 1000)], Setting("cuda"), Adaptation("nothing", 0, {}, None, None, None), seconds=1.0
    ).cells
    assert cell.device_bytes is not None
    assert cell.device_bytes > cell.state_bytes
    assert (cell.gpu_utilisation is None) == ("gpu_utilisation" in cell.unmeasured)
    assert cell.latency_ms["forward"].p50 < cell.latency_ms["step"].p50


def test_two_sides_that_are_the_same_show_no_regression():
    found = list(compare(SOURCES, SOURCES, [Cell(32, 100)], Setting("cuda"), Rules()))
    assert {"device_bytes", "host_bytes"} <= {one.what for one in found}
    assert "regression" not in {one.verdict for one in found}
