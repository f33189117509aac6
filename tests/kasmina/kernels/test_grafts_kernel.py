"""The kernel of grafts against blueprints and autograd: on a GPU if there is one, else in Triton's interpreter."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.lifecycle import State
from esper.evaluation.bench.agreement import errors_of
from esper.evaluation.bench.planted import Planting, grow, planted
from esper.kasmina.kernels.grafts.family import Shape
from esper.kasmina.kernels.grafts.layout import Spots
from esper.kasmina.kernels.grafts.ops import About, Batch
from tests.few import few

launch = pytest.importorskip("esper.kasmina.kernels.grafts.launch", exc_type=ImportError)

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
    "glu": {"hidden": 20, "reads": "chunk"},
}
BIT = 1
CASES = {
    "apart": ((70,), 40, 8, (0, 16, 24)),
    "uneven": ((3, 11), 33, 5, (3, 20, 28)),
    "wide": ((1,), 260, 64, (64, 128, 196)),
    "far": ((2, 4), 400, 8, (16, 24, 200)),
    "single channels": ((9,), 12, 1, (0, 3, 4, 5, 11)),
    "all": ((2, 3, 5), 16, 4, (4, 8, 12, 0)),
}
"""Leading axes, channels of the place, channels of a graft, first channel of each."""
OVER = [(case, over) for case in ("apart", "single channels") for over in (False, True)]
each_way = pytest.mark.parametrize(("case", "over"), few(OVER, [("apart", True), ("single channels", False)]))


class Bench:
    """Grafts with what the host wrote and its gradient. One of them has not begun to rise, and one rests."""

    def __init__(self, name: str, case: str = "apart", dtype: torch.dtype = torch.float32, *, is_live=True) -> None:
        torch.manual_seed(0)
        leading, channels, self.width, self.firsts = CASES[case]
        self.blueprint, self.ports = make_blueprint(name, GRAFTS[name]), Ports(self.width, self.width)
        shape = Shape.of(self.blueprint, self.ports)
        assert shape is not None
        grafts, self.size = len(self.firsts), shape.num_parameters
        self.y, self.grad = (torch.randn(*leading, channels, device=DEVICE).to(dtype) for _ in range(2))
        order = torch.randperm(grafts + 2)[:grafts]  # slots
        self.params = (0.5 * torch.randn(grafts + 2, self.size + 3, device=DEVICE)).to(dtype)
        self.alpha, self.lifecycle = torch.linspace(0.3, 1.0, 9), torch.full((9,), int(State.GRAFTING))
        seeds = torch.arange(grafts) + 2
        self.alpha[seeds[1]], self.lifecycle[seeds[0]] = 0.0, int(State.STABILIZATION)
        self.scale: Tensor | None = None
        self.fault = torch.zeros(9, dtype=torch.int8, device=DEVICE)
        self.alpha, self.lifecycle = self.alpha.to(DEVICE), self.lifecycle.to(DEVICE, torch.int8)
        spots = Spots.of(self.firsts, self.width, channels, torch.device(DEVICE))
        self.batch = Batch(shape, spots, order.to(DEVICE), seeds.to(DEVICE), is_live, BIT)
        self.shares = self.alpha[self.batch.seeds].tolist() if is_live else [1.0] * grafts

    def chunk(self, graft: int) -> slice:
        return slice(self.firsts[graft], self.firsts[graft] + self.width)

    def row(self, graft: int) -> Tensor:
        """Parameters of a graft, a view."""
        return self.params[self.batch.slots[graft], : self.size]

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, gradient of what the host wrote, gradient of the slots; in float64."""
        y, params = self.y.double().requires_grad_(), self.params.double().requires_grad_()
        out = y.clone()
        for graft, share in enumerate(self.shares):
            chunk, row = y[..., self.chunk(graft)], params[self.batch.slots[graft], : self.size]
            row = row.detach() if graft == 0 and self.batch.is_live else row
            out[..., self.chunk(graft)] = chunk + share * self.delta(row, chunk)
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

    def found(self, *, learns: bool = True, over: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same by the kernel; ``over`` writes over what it is given."""
        about, y, grad = About(self.fault, self.scale, None, self.y.dtype), self.y.clone(), self.grad.clone()
        out, kept = launch.forward(y, None, self.params, self.batch, self, about, may_write_over=over)
        grad_y, grads, _ = launch.backward(
            grad, y, self.params, kept, self.batch, about, learns=learns, may_write_over=over
        )
        assert [out.data_ptr() == y.data_ptr(), grad_y.data_ptr() == grad.data_ptr()] == [over, over]
        return out, grad_y, grads

    def faults(self) -> list[int]:
        """Of the grafts."""
        return self.fault[self.batch.seeds].tolist()


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * scale)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """To the byte; but kernels that write over what they are given and kernels that do not are two to Triton, which may
    add up a gradient of parameters in two orders."""
    *outputs, grads = zip(found, expected, strict=True)
    assert all(torch.equal(one.view(torch.int32), other.view(torch.int32)) for one, other in outputs)
    if DEVICE == "cuda":
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "case"),
    few(
        product(GRAFTS, CASES),
        [*product(GRAFTS, ["apart", "all"]), ("affine", "far"), ("low_rank", "uneven"), ("glu", "wide")],
    ),
)
def test_output_and_gradients_are_those_of_the_blueprint(name, case, dtype):
    bench = Bench(name, case, dtype)
    for found, expected in zip(bench.found(), bench.expected(), strict=True):
        assert_close(found, expected, dtype)
    assert not bench.fault.any()


@pytest.mark.parametrize("name", GRAFTS)
def test_what_no_graft_changes_keeps_its_bytes(name):
    bench = Bench(name)
    bench.y[:, 16] = -0.0  # of the graft that has not begun to rise
    out, grad_y, grads = bench.found()
    kept = torch.ones(40, dtype=torch.bool)
    for graft in (0, 2):
        kept[bench.chunk(graft)] = False
    assert torch.equal(out[:, kept].view(torch.int32), bench.y[:, kept].view(torch.int32))
    assert torch.equal(grad_y[:, kept], bench.grad[:, kept])
    assert not torch.equal(out[:, ~kept], bench.y[:, ~kept])
    assert not grads[bench.batch.slots[0]].any()  # it rests
    assert grads[bench.batch.slots[2], : bench.size].all()


@pytest.mark.parametrize("name", GRAFTS)
def test_fossils_count_in_full_and_have_no_gradients_of_weights(name):
    bench = Bench(name, is_live=False)
    out, grad_y, grads = bench.found(learns=False)
    expected = bench.expected()
    assert grads is None
    assert_close(out, expected[0], torch.float32)
    assert_close(grad_y, expected[1], torch.float32)


def test_positions_behind_the_channels():
    for name in GRAFTS:
        bench, last = Bench(name, "all"), Bench(name, "all")
        bench.y, bench.grad = (one.movedim(-1, 1).contiguous().movedim(1, -1) for one in (bench.y, bench.grad))
        assert bench.y.stride(-1) != 1
        for over in (False, True):
            for found, expected in zip(bench.found(over=over), last.found(), strict=True):
                assert_close(found, expected.double(), torch.float32)


@pytest.mark.parametrize("case", few(CASES, ["uneven", "all"]))
@pytest.mark.parametrize("name", GRAFTS)
def test_what_is_written_over_gets_the_bytes_of_a_new_tensor(name, case):
    bench = Bench(name, case)
    bench.y[..., bench.firsts[1]] = -0.0  # of the graft that has not begun to rise
    assert_same(bench.found(over=True), bench.found())
    assert not bench.fault.any()


@pytest.mark.parametrize("case", ["apart", "single channels"])
@pytest.mark.parametrize("name", GRAFTS)
def test_the_same_input_gives_the_same_bytes(name, case):
    first, second = (Bench(name, case).found() for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@each_way
@pytest.mark.parametrize(
    ("at", "value"),
    few([(at, value) for at in (0, -1) for value in (math.nan, math.inf, -math.inf)], [(0, math.nan), (-1, math.inf)]),
)
@pytest.mark.parametrize("name", few(GRAFTS, ["affine", "glu"]))
def test_a_graft_that_is_not_finite_is_the_identity_and_the_others_are_as_without_it(name, case, at, value, over):
    sound, faulty = Bench(name, case), Bench(name, case)
    sound.alpha[sound.batch.seeds[2]] = 0.0
    faulty.row(2)[at] = value
    expected, found = sound.found(), faulty.found(over=over)
    assert_same(found, expected)
    assert faulty.faults() == [BIT if graft == 2 else 0 for graft in range(len(faulty.firsts))]


@pytest.mark.parametrize("name", GRAFTS)
def test_a_graft_is_at_fault_before_it_rises(name):
    bench = Bench(name)
    bench.row(1)[0] = float("nan")
    out, *_ = bench.found()
    assert bench.faults() == [0, BIT, 0]
    assert out.isfinite().all()


@each_way
@pytest.mark.parametrize("name", few(GRAFTS, ["affine", "glu"]))
def test_what_the_host_gave_is_not_the_grafts_fault(name, case, over):
    bench, sound = Bench(name, case), Bench(name, case)
    bench.y[3, bench.firsts[2]] = float("inf")
    (out, *_), (expected, *_) = bench.found(over=over), sound.found()
    assert torch.equal(out[:, bench.chunk(2)], bench.y[:, bench.chunk(2)])
    others = [channel for graft in (0, 1) for channel in range(*bench.chunk(graft).indices(99))]
    assert torch.equal(out[:, others], expected[:, others])
    assert not bench.fault.any()


@pytest.mark.parametrize("over", [False, True])
def test_a_gradient_that_a_graft_spoils_is_dropped_whole_and_one_of_the_host_is_kept(over):
    bench = Bench("affine")
    bench.row(2)[0] = 1e3  # the forward pass is finite
    bench.grad[0, 24] = torch.finfo(torch.float32).max / 10
    _, grad_y, grads = bench.found(over=over)
    assert bench.faults() == [0, 0, BIT]
    assert torch.equal(grad_y[:, 24:32], bench.grad[:, 24:32])
    assert not grads[bench.batch.slots[2]].any()
    bench.fault[:], bench.scale = 0, torch.full((), 8.0, device=DEVICE)
    _, grad_y, grads = bench.found(over=over)
    assert not bench.fault.any()
    assert torch.equal(grad_y[:, 24:32], bench.grad[:, 24:32])
    assert grads[bench.batch.slots[2], : bench.size].isinf().all()
    bench.scale.fill_(1.0)
    _, _, grads = bench.found(over=over)
    assert bench.faults() == [0, 0, BIT]
    assert not grads[bench.batch.slots[2]].any()
    bench.grad[0, 24], bench.fault[:] = float("inf"), 0
    _, grad_y, grads = bench.found(over=over)
    assert not bench.fault.any()
    assert grad_y[0, 24].isinf()
    assert not grads[bench.batch.slots[2]].isfinite().all()


@pytest.mark.parametrize(
    ("name", "width", "leading"),
    few(
        product(["low_rank", "bottleneck_mlp", "glu"], [1, 5, 32], [(9,), (2, 3, 5)]),
        [("low_rank", 1, (9,)), ("bottleneck_mlp", 5, (2, 3, 5)), ("glu", 32, (9,))],
    ),
)
def test_grafts_that_read_the_input_give_what_their_twins_give(name, width, leading, monkeypatch):
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    settings = GRAFTS[name] | {"reads": "input"}
    place = planted(Planting(6 * width, 6, 4, name, settings), torch.device(DEVICE), torch.float32)
    for is_first in (False, True) if len(leading) > 1 else (False,):
        assert max(errors_of(place, leading, is_first=is_first)) < 1e-5


def test_autocast_multiplies_in_the_lower_precision(monkeypatch):
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    kinds = []
    monkeypatch.setattr(
        launch, "forward", lambda *args, of=launch.forward, **more: kinds.append(args[-1].dot) or of(*args, **more)
    )
    place = planted(Planting(64, 2, 1), torch.device(DEVICE), torch.float32)
    y = torch.randn(3, 64, device=DEVICE)
    grow(place, y)
    with torch.autocast(DEVICE, torch.bfloat16):
        grow(place, y)
    assert kinds == [torch.float32, torch.bfloat16]
