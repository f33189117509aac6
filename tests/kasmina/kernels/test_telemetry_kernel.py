"""The kernel of telemetry against its twin: on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from esper.kasmina.kernels.telemetry import reference
from esper.kasmina.kernels.telemetry.reference import is_due
from tests.few import few

kernel = pytest.importorskip("esper.kasmina.kernels.telemetry.triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
SHAPES = [((37, 11), -1), ((5, 7, 11), -1), ((5, 11, 7), 1), ((2, 3, 5, 11), -1), ((3, 11, 4, 5), 1), ((40, 200), 1)]
SHARE = 0.125


class Sums:
    """What a look leaves behind, filled with what a kernel must not take for its own."""

    def __init__(self, channels: int, *, is_first: bool) -> None:
        def made(size: int) -> Tensor:
            return torch.zeros(size, device=DEVICE) if is_first else torch.arange(1.0, size + 1, device=DEVICE)

        self.sums, self.pivot, self.squares, self.steps = map(made, (4 * channels, channels, channels, 4))
        self.turn = torch.zeros(2, dtype=torch.int64, device=DEVICE)

    def __iter__(self):
        return iter((self.sums, self.pivot, self.squares, self.steps))


def outputs(shape: tuple[int, ...], axis: int, dtype: torch.dtype, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    y = torch.randn(shape, generator=generator).movedim(axis, -1)
    y = y * torch.linspace(0.5, 3, y.shape[-1]) + torch.linspace(-3, 3, y.shape[-1])
    return y.movedim(-1, axis).contiguous().to(DEVICE, dtype)


def both(shape, axis, rows, threshold, dtype, spoil=lambda y: y, is_first=True) -> tuple[Sums, Sums]:
    states = Sums(shape[axis], is_first=is_first), Sums(shape[axis], is_first=is_first)
    for step in range(3):
        y = spoil(outputs(shape, axis, dtype, step))
        for state, module in zip(states, (reference, kernel), strict=True):
            module.look(y, axis, rows, threshold, state.sums, state.pivot, state.turn)
            module.feel(y, axis, rows, state.squares, state.steps, state.turn)
    return states


def assert_alike(states: tuple[Sums, Sums]) -> None:
    for expected, found in zip(*states, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis", "rows"),
    few(
        [(*shape, rows) for shape in SHAPES for rows in (1, 5, 24, 50)],
        [*((*SHAPES[0], rows) for rows in (1, 5, 24, 50)), *((*shape, 24) for shape in SHAPES)],
    ),
)
def test_sums_are_those_of_the_twin(shape, axis, rows, dtype):
    assert_alike(both(shape, axis, rows, 0.5, dtype))


@pytest.mark.parametrize("channels", [300, 1000])
def test_norms_of_a_wide_output_are_taken_first(channels, monkeypatch):
    monkeypatch.setattr(kernel, "WIDE", 512)
    assert_alike(both((40, channels), -1, 37, 0.5, torch.float32))


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_vectors_of_a_window_set_the_pivots_and_later_ones_do_not(is_first):
    states = both((9, 130), -1, 24, None, torch.float32, is_first=is_first)
    assert_alike(states)
    assert torch.equal(states[1].pivot, torch.arange(1.0, 131, device=DEVICE)) is not is_first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e18])
def test_a_vector_that_is_not_finite_is_left_out(value):
    def spoiled(y: Tensor) -> Tensor:
        y[3, 7] = value
        return y

    states = both((12, 40), -1, 24, 0.0, torch.float32, spoiled)
    assert_alike(states)
    assert states[1].sums[-1].item() == 3 * 11
    assert all(values.isfinite().all() for values in states[1])


def test_strides_of_the_output_do_not_matter():
    for y in (torch.randn(3, 8, 4, 5).to(memory_format=torch.channels_last), torch.randn(6, 4, 11).transpose(0, 1)):
        axis = 1 if y.dim() == 4 else -1
        found, expected = Sums(y.shape[axis], is_first=True), Sums(y.shape[axis], is_first=True)
        kernel.look(y.to(DEVICE), axis, 24, 0.0, found.sums, found.pivot, found.turn)
        kernel.look(y.to(DEVICE).contiguous(), axis, 24, 0.0, expected.sums, expected.pivot, expected.turn)
        if DEVICE == "cpu":
            assert torch.equal(found.sums, expected.sums)
        else:  # which thread holds which number, and so the order of the sums, goes by the strides
            torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [reference, kernel])
def test_it_may_be_asked_on_the_device_whether_it_is_a_passs_turn(module):
    state, looked, felt = Sums(11, is_first=True), [], []
    for step in range(40):
        y = outputs((4, 11), -1, torch.float32, step)
        vectors, passes = state.sums[-1].item(), state.steps[1].item()
        module.look(y, -1, 24, 0.0, state.sums, state.pivot, state.turn, SHARE)
        module.feel(y, -1, 24, state.squares, state.steps, state.turn, SHARE)
        looked.append(state.sums[-1].item() > vectors)
        felt.append(state.steps[1].item() > passes)
    expected = [is_due(step, SHARE) for step in range(40)]
    assert looked == felt == expected
    assert 3 <= sum(expected) <= 7
    assert state.turn.tolist() == [40, 0]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_captured_pass_looks_in_its_turns():
    from esper.kasmina.seeds.telemetry import Telemetry

    telemetry = Telemetry((0, 4, 11), 24, torch.device("cuda"))
    x = torch.randn(16, 11, device="cuda", requires_grad=True)

    def step() -> None:
        y = 2 * x
        telemetry.observe(y, -1)
        torch.autograd.grad(y, x, torch.ones_like(y))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    telemetry.reset()
    for _ in range(40):
        graph.replay()
    expected = sum(is_due(step, SHARE) for step in range(40))
    assert telemetry.sums[-1].item() == 16 * expected
    assert telemetry.gradient_steps[1].item() == expected
