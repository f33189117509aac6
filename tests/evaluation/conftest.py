"""What the tests of evaluation share."""

import pytest
import torch

from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    parts = [Samples(x[rows], y[rows]) for rows in torch.arange(400).split([200, 100, 100])]
    host = MLPHost((6, 8, 8, 2))
    return Task("xor", *parts, make_host=host, labels=("0", "1"), shape=(6,))
