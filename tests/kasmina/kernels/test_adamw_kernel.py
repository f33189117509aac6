"""The kernel of AdamW against its twin: on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch

from esper.kasmina.kernels.adamw import reference

kernel = pytest.importorskip("esper.kasmina.kernels.adamw.triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_rates", [False, True])
@pytest.mark.parametrize(("slots", "size"), [(1, 1), (3, 7), (5, 1030), (130, 3)])
def test_steps_are_those_of_the_twin(slots, size, has_rates, dtype):
    torch.manual_seed(0)
    start = [torch.randn(slots, size, device=DEVICE).to(dtype), *torch.zeros(2, slots, size, device=DEVICE)]
    start.append(torch.zeros(slots, device=DEVICE))
    expected, found = ([one.clone() for one in start] for _ in range(2))
    lr = 1e-2 * torch.rand(slots, 1, device=DEVICE) if has_rates else 1e-2
    for _ in range(4):
        grad, moves = torch.randn(slots, size, device=DEVICE), torch.rand(slots, device=DEVICE) < 0.7
        grad[~moves] = float("nan")
        for (params, exp_avg, exp_avg_sq, updates), module in zip((expected, found), (reference, kernel), strict=True):
            module.step_adamw(params, grad, exp_avg, exp_avg_sq, updates, moves, lr, 0.01)
        for one, other in zip(expected, found, strict=True):
            # In half precision both may round to neighbours; else the twin's own powers are the less exact ones.
            rtol = 1e-4 if one.dtype == torch.float32 else torch.finfo(one.dtype).eps
            torch.testing.assert_close(other, one, rtol=rtol, atol=1e-6)
            other.copy_(one)  # a neighbour now would be further away once the value is smaller


def test_a_row_that_does_not_move_keeps_its_bytes():
    tensors = [torch.randn(2, 9, device=DEVICE) for _ in range(3)]
    before = [one.clone() for one in tensors]
    updates, moves = torch.ones(2, device=DEVICE), torch.tensor([False, True], device=DEVICE)
    params, exp_avg, exp_avg_sq = tensors
    kernel.step_adamw(params, torch.ones(2, 9, device=DEVICE), exp_avg, exp_avg_sq.abs_(), updates, moves, 0.1, 0.1)
    assert torch.equal(params[0], before[0][0])
    assert torch.equal(exp_avg[0], before[1][0])
    assert not torch.equal(params[1], before[0][1])
    assert updates.tolist() == [1.0, 2.0]
