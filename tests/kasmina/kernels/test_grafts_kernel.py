"""The kernel of grafts against blueprints and autograd: on a GPU if there is one, else in Triton's interpreter."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.kasmina.kernels.grafts.family import Shape

kernel = pytest.importorskip("esper.kasmina.kernels.grafts.triton", exc_type=ImportError)

pytestmark = [  # the interpreter's NumPy warns of what is not finite
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
GRAFTS = {
    "affine": {},
    "low_rank": {"rank": 5, "reads": "chunk"},
    "bottleneck_mlp": {"hidden": 7, "reads": "chunk"},
    "glu": {"hidden": 70, "reads": "chunk"},
}
CASES = [(70, 40, 8, (0, 16, 24)), (5, 33, 5, (3, 20)), (1, 130, 64, (64,))]
"""Rows, channels of the place, channels of a graft, first channel of each."""


class Bench:
    """Grafts with what the host wrote and its gradient."""

    def __init__(self, name: str, case, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        rows, channels, self.width, self.firsts = case
        self.blueprint, self.ports = make_blueprint(name, GRAFTS[name]), Ports(self.width, self.width)
        shape = Shape.of(self.blueprint, self.width)
        assert shape is not None
        self.shape, grafts = shape, len(self.firsts)
        self.y, self.grad = (torch.randn(rows, channels, device=DEVICE).to(dtype) for _ in range(2))
        self.params = (0.5 * torch.randn(grafts, shape.num_parameters, device=DEVICE)).to(dtype)
        self.first = torch.tensor(self.firsts, dtype=torch.int32, device=DEVICE)
        self.alpha = torch.linspace(0.3, 1.0, grafts, device=DEVICE)
        self.counts = torch.tensor([index != 1 for index in range(grafts)], device=DEVICE)

    def chunk(self, graft: int) -> slice:
        return slice(self.firsts[graft], self.firsts[graft] + self.width)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, gradient of what the host wrote, gradient of the parameters; in float64."""
        y, params = self.y.double().requires_grad_(), self.params.double().requires_grad_()
        out = y.clone()
        for graft in range(len(self.firsts)):
            if self.counts[graft]:
                chunk = y[:, self.chunk(graft)]
                out[:, self.chunk(graft)] = chunk + self.alpha[graft] * self.delta(params[graft], chunk)
        out.backward(self.grad.double())
        assert y.grad is not None
        assert params.grad is not None
        return out.detach(), y.grad, params.grad

    def delta(self, params: Tensor, x: Tensor) -> Tensor:
        shapes = self.blueprint.shapes(self.ports)
        bounds = [0, *torch.tensor([math.prod(shape) for shape in shapes.values()]).cumsum(0).tolist()]
        named = {
            name: params[start:end].view(shape)
            for (name, shape), (start, end) in zip(shapes.items(), pairwise(bounds), strict=True)
        }
        return self.blueprint.delta(named, x)

    def found(self, *, learns: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The same by the kernel, and the flags of both passes."""
        about = self.first, self.alpha, self.counts
        out, flags = kernel.forward(self.y, self.params, *about, self.shape)
        grad_y, grad_params, faults = kernel.backward(
            self.grad, self.y, self.params, *about, flags, self.shape, learns=learns
        )
        return out, grad_y, grad_params, flags, faults


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", GRAFTS)
def test_output_and_gradients_are_those_of_the_blueprint(name, case, dtype):
    bench = Bench(name, case, dtype)
    out, grad_y, grad_params, flags, faults = bench.found()
    for one, other in zip((out, grad_y, grad_params), bench.expected(), strict=True):
        assert_close(one, other, dtype)
    assert not flags.any()
    assert not faults.any()


@pytest.mark.parametrize("name", GRAFTS)
def test_fossils_have_no_gradients_of_weights(name):
    bench = Bench(name, CASES[0])
    _, grad_y, grad_params, *_ = bench.found(learns=False)
    assert grad_params is None
    assert_close(grad_y, bench.expected()[1], torch.float32)


@pytest.mark.parametrize("name", GRAFTS)
def test_the_same_input_gives_the_same_bytes(name):
    first, second = (Bench(name, CASES[0]).found() for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", GRAFTS)
def test_a_graft_that_is_not_finite_is_the_identity_and_the_others_are_as_without_it(name):
    sound, faulty = Bench(name, CASES[0]), Bench(name, CASES[0])
    sound.counts[2] = False
    faulty.params[2, -1] = float("nan")
    expected, found = sound.found(), faulty.found()
    assert all(torch.equal(one, other) for one, other in zip(expected[:3], found[:3], strict=True))
    assert found[3].tolist() == [0, 0, kernel.NOT_SOUND]


@pytest.mark.parametrize("name", GRAFTS)
def test_what_the_host_gave_is_not_the_grafts_fault(name):
    bench = Bench(name, CASES[0])
    bench.y[3, 25] = float("inf")
    out, *_, flags, _ = bench.found()
    assert torch.equal(out[:, 24:32], bench.y[:, 24:32])
    assert flags.tolist() == [0, 0, kernel.NOT_SOUND | kernel.NOT_HOSTS]


def test_a_gradient_that_a_graft_spoils_is_dropped_whole_and_one_of_the_host_is_kept():
    bench = Bench("affine", CASES[0])
    huge = torch.finfo(torch.float32).max
    bench.params[2, 0] = 1e3  # the forward pass is finite
    bench.grad[0, 24] = huge / 10
    _, grad_y, grad_params, flags, faults = bench.found()
    assert not flags.any()
    assert faults.tolist() == [0, 0, kernel.NOT_SOUND]
    assert torch.equal(grad_y[:, 24:32], bench.grad[:, 24:32])
    assert not grad_params[2].any()
    bench.grad[0, 24] = float("inf")
    _, grad_y, grad_params, _, faults = bench.found()
    assert faults.tolist() == [0, 0, kernel.NOT_SOUND | kernel.NOT_HOSTS]
    assert grad_y[0, 24].isinf()
    assert not grad_params[2].isfinite().all()
