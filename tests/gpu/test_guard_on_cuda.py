"""What is not finite is found by one kernel on a GPU."""

import math

import pytest
import torch

from esper.kasmina.grafts.guard import finite_G

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_graft_that_is_not_finite_is_told_from_the_others(dtype, value):
    values = torch.full((3, 70, 33), torch.finfo(dtype).max, dtype=dtype, device="cuda")
    values[1, 69, 32] = value
    assert finite_G(values).tolist() == [True, False, True]
