"""The kernel of AdamW against its twin: on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch

from esper.contracts.lifecycle import TRAINABLE, State
from esper.kasmina.kernels.adamw import reference
from esper.kasmina.kernels.adamw.reference import Rows

kernel = pytest.importorskip("esper.kasmina.kernels.adamw.triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
SIZES = [
    [(1, 1)],
    [(3, 7), (5, 1030), (2, 1)],
    pytest.param([(33, 3), (1, 2049)], marks=pytest.mark.long),
    pytest.param([(130, 3), (1, 2049)], marks=pytest.mark.long),
]


def rows_of(slots: int, size: int, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> Rows:
    """Rows at their first step, all of which may move."""
    tensors = [torch.randn(slots, size, device=DEVICE).to(dtype) for _ in range(2)]
    moments = torch.zeros(2, slots, size, device=DEVICE)
    moves = torch.ones(slots, dtype=torch.bool, device=DEVICE)
    return Rows(*tensors, *moments, torch.zeros(slots, device=DEVICE), moves, **more)


def copied(rows: Rows) -> Rows:
    return Rows(*(None if one is None else one.clone() for one in rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_more", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_steps_are_those_of_the_twin(sizes, has_more, dtype):
    """Of several sets at once, with gradients that are not finite, with states of seeds and rates of their own."""
    torch.manual_seed(0)
    expected = [rows_of(*size, dtype) for size in sizes]
    if has_more:
        for index, rows in enumerate(expected[::2]):
            slots = len(rows.moves_S)
            more = {
                "seeds_S": torch.randint(20, (slots,), device=DEVICE),
                "lifecycle_T": torch.randint(11, (20,), dtype=torch.int8, device=DEVICE),
                "rates_S1": torch.rand(slots, 1, device=DEVICE),
            }
            expected[2 * index] = rows._replace(**more)
    found = [copied(rows) for rows in expected]
    for _ in range(4):
        for one, other in zip(expected, found, strict=True):
            for rows in (one, other):
                rows.grad_SN.copy_(torch.randn(one.grad_SN.shape) if rows is one else one.grad_SN)
            faulty = torch.rand(len(one.moves_S)) < 0.2
            for rows in (one, other):
                rows.grad_SN[faulty, -1] = float("inf")
            one.moves_S.copy_(torch.rand(len(one.moves_S)) < 0.7)
            other.moves_S.copy_(one.moves_S)
        for module, sets in ((reference, expected), (kernel, found)):
            module.step_adamw(sets, 1e-2, 0.01)
        for one, other in zip(expected, found, strict=True):
            for wanted, got in zip(one[:5], other[:5], strict=True):
                # In half precision both may round to neighbours; else the twin's own powers are the less exact ones.
                rtol = 1e-4 if wanted.dtype == torch.float32 else torch.finfo(wanted.dtype).eps
                torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-6, equal_nan=True)
                got.copy_(wanted)  # a neighbour now would be further away once the value is smaller


@pytest.mark.parametrize("module", [reference, kernel])
@pytest.mark.parametrize("why", ["it may not", "its gradient is not finite", "its seed does not train", "all skip"])
def test_a_row_that_does_not_move_keeps_its_bytes(why, module):
    rows = rows_of(2, 2 * 1024 + 9)
    states = torch.full((3,), int(State.GRAFTING), dtype=torch.int8, device=DEVICE)
    rows = rows._replace(seeds_S=torch.tensor([2, 1], device=DEVICE), lifecycle_T=states)
    assert State.GRAFTING in TRAINABLE
    skip = None
    if why == "it may not":
        rows.moves_S[0] = False
    elif why == "its gradient is not finite":
        rows.grad_SN[0, -1] = float("nan")
    elif why == "its seed does not train":
        states[2] = int(State.EVALUATING)
    else:
        skip = torch.tensor(True, device=DEVICE)
    before = copied(rows)
    module.step_adamw([rows], 0.1, 0.1, skip)
    for one, other in zip(rows[:5], before[:5], strict=True):
        if one is not rows.grad_SN:
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1]) == (why == "all skip")


def test_a_skip_that_is_not_one_changes_nothing():
    rows = [rows_of(2, 3)]
    rows.append(copied(rows[0]))
    kernel.step_adamw(rows[:1], 0.1, 0.1)
    kernel.step_adamw(rows[1:], 0.1, 0.1, torch.tensor(False, device=DEVICE))
    assert all(torch.equal(one, other) for one, other in zip(rows[0][:5], rows[1][:5], strict=True))
    assert rows[0].updates_S.tolist() == [1.0, 1.0]
