"""What seeds sense, against an explicit loop over seeds in float64."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esper.contracts.reports import SeedReport
from esper.kasmina.kernels.telemetry import reference
from esper.kasmina.kernels.telemetry.reference import sampled
from esper.kasmina.seeds import telemetry as module
from esper.kasmina.seeds.chunking import chunk_bounds
from esper.kasmina.seeds.seed_state import SeedState
from esper.kasmina.seeds.telemetry import COMPILES_HOOKS, Telemetry

BOUNDS = (0, 1, 4, 8, 11)
CHANNELS = BOUNDS[-1]
SHAPES = [((37, 11), -1), ((37, 11), 1), ((5, 7, 11), -1), ((5, 11, 7), 1), ((2, 3, 5, 11), -1), ((3, 11, 4, 5), 1)]
CPU = torch.device("cpu")


@pytest.fixture
def every_pass(monkeypatch):
    """Every forward pass has its turn."""
    monkeypatch.setattr(module, "SHARE", 1.0)


def telemetry(bounds=BOUNDS, rows=4096, threshold: float | None = -0.3) -> Telemetry:
    made = Telemetry(bounds, rows, CPU)
    made.set_threshold(threshold)
    return made


def outputs(shape: tuple[int, ...], axis: int, passes: int = 4) -> list[Tensor]:
    """Channels of different means and scales; neighbours that correlate."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(passes):
        y = torch.randn(shape, generator=generator).movedim(axis, -1)
        y = y + 0.7 * y.roll(1, -1)
        y = y * torch.linspace(0.1, 3, CHANNELS) + torch.linspace(-1, 1, CHANNELS)
        made.append(y.movedim(-1, axis).contiguous())
    return made


def all_vectors(tensors: list[Tensor], axis: int) -> Tensor:
    return torch.cat([tensor.detach().movedim(axis, -1).reshape(-1, tensor.shape[axis]) for tensor in tensors]).double()


def by_loop(x_NC: Tensor, gradient_NC: Tensor, bounds=BOUNDS, threshold=-0.3) -> SeedReport:
    """The definition of every column, seed by seed and channel by channel."""
    columns: list[list[float]] = [[], [], [], []]
    for first, end in pairwise(bounds):
        variances = [x_NC[:, channel].var(correction=0).item() for channel in range(first, end)]
        correlations = []
        for channel in range(first, end - 1):
            pair = torch.corrcoef(x_NC[:, channel : channel + 2].T)
            correlations.append(abs(pair[0, 1].item()))
        columns[0].append(sum(variances) / len(variances))
        columns[1].append((x_NC[:, first:end] <= threshold).double().mean().item())
        columns[2].append(sum(correlations) / max(len(correlations), 1))
        columns[3].append(gradient_NC[:, first:end].square().mean().sqrt().item())
    return SeedReport(*columns)


def assert_equal_reports(report: SeedReport, expected: SeedReport, rtol: float = 1e-5) -> None:
    for name in SeedReport.__slots__:
        mine, wanted = torch.tensor(getattr(report, name)), torch.tensor(getattr(expected, name))
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def observed(sensing: Telemetry, ys: list[Tensor], axis: int) -> list[Tensor]:
    """Look at every ``y`` and at a gradient; returns the gradients."""
    gradients = [torch.randn_like(y) * (1 + index) for index, y in enumerate(ys)]
    for y, gradient in zip(ys, gradients, strict=True):
        y = y.clone().requires_grad_() * 1
        sensing.observe(y, axis)
        y.backward(gradient)
    return gradients


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_report_is_what_a_loop_over_seeds_computes(shape, axis):
    torch.manual_seed(0)
    sensing, ys = telemetry(), outputs(shape, axis)
    gradients = observed(sensing, ys, axis)
    expected = by_loop(all_vectors(ys, axis), all_vectors(gradients, axis))
    assert_equal_reports(sensing.report(), expected)
    assert sensing.report().mean_abs_correlation[0] == 0.0  # a chunk of one channel


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_float32_whatever_comes_in(dtype):
    torch.manual_seed(0)
    sensing = telemetry().to(dtype)
    ys = [100 * y.to(dtype) for y in outputs((37, 11), -1)]  # their squares would overflow float16 and stall bfloat16
    gradients = observed(sensing, ys, -1)
    assert all(buffer.dtype == torch.float32 for name, buffer in sensing.named_buffers() if name != "turn")
    assert_equal_reports(sensing.report(), by_loop(all_vectors(ys, -1), all_vectors(gradients, -1)))


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_strides_do_not_matter(memory_format):
    torch.manual_seed(0)
    sensing, ys = telemetry(), outputs((3, 11, 4, 5), 1)
    gradients = observed(sensing, [y.to(memory_format=memory_format) for y in ys], 1)
    assert_equal_reports(sensing.report(), by_loop(all_vectors(ys, 1), all_vectors(gradients, 1)))
    transposed, ys = telemetry(), [y.transpose(0, 1).contiguous() for y in outputs((4, 6, 11), -1)]
    observed(transposed, [y.transpose(0, 1) for y in ys], -1)
    expected = by_loop(all_vectors(ys, -1), all_vectors(ys, -1))
    assert transposed.report().chunk_variance == pytest.approx(expected.chunk_variance, rel=1e-5)


@pytest.mark.usefixtures("every_pass")
def test_pivots_keep_the_variance_of_a_distant_narrow_channel():
    """Mean 30, standard deviation 0.01. Negative control: plain sums of squares are off by more than all of it."""
    generator = torch.Generator().manual_seed(1)
    ys = [30 + 0.01 * torch.randn(64, 11, generator=generator) for _ in range(50)]
    sensing = telemetry()
    for y in ys:
        sensing.observe(y, -1)
    expected = by_loop(all_vectors(ys, -1), torch.ones(1, CHANNELS).double())
    assert sensing.report().chunk_variance == pytest.approx(expected.chunk_variance, rel=1e-4)
    assert sensing.report().mean_abs_correlation == pytest.approx(expected.mean_abs_correlation, abs=1e-4)
    count = sum(len(y) for y in ys)
    mean_C, square_C = sum(y.sum(0) for y in ys) / count, sum(y.square().sum(0) for y in ys) / count
    plain_C = square_C - mean_C.square()
    assert (plain_C < 0).any()
    assert (plain_C - 1e-4).abs().max() > 1e-4


@pytest.mark.usefixtures("every_pass")
def test_one_sample_has_no_variance_and_correlates_with_nothing():
    sensing = telemetry()
    sensing.observe(torch.linspace(-1, 1, 11).view(1, 11), -1)
    report = sensing.report()
    assert report.chunk_variance == report.mean_abs_correlation == (0.0,) * 4
    assert report.inactive_ratio == (1.0, 1.0, 0.0, 0.0)
    unbatched = telemetry()
    unbatched.observe(torch.linspace(-1, 1, 11), -1)
    assert unbatched.report() == report


@pytest.mark.usefixtures("every_pass")
def test_a_constant_channel_correlates_with_none():
    sensing = telemetry((0, 3), threshold=0.0)
    x = torch.linspace(-1, 1, 9)
    sensing.observe(torch.stack((x, torch.full_like(x, 0.3), x), dim=1), -1)
    assert sensing.report().mean_abs_correlation == (0.0,)


@pytest.mark.usefixtures("every_pass")
def test_what_was_not_measured_is_none():
    nothing = SeedReport()
    assert telemetry().report() == nothing
    off = telemetry(rows=0)
    off.observe(torch.ones(4, 11, requires_grad=True) * 2, -1)
    assert off.report() == nothing
    empty = telemetry()
    empty.observe(torch.ones(0, 11), -1)
    assert empty.report() == nothing
    forward_only = telemetry(threshold=None)
    forward_only.observe(torch.ones(4, 11), -1)
    assert forward_only.report() == SeedReport(chunk_variance=[0.0] * 4, mean_abs_correlation=[0.0] * 4)
    assert forward_only.gradient_noise() is None


@pytest.mark.usefixtures("every_pass")
def test_a_value_at_the_threshold_is_inactive():
    sensing = telemetry((0, 2), threshold=0.0)
    sensing.observe(torch.tensor([[0.0, 1.0], [-1.0, 0.1], [1e-30, 0.0], [30.0, 30.0]]), -1)
    assert sensing.report().inactive_ratio == (3 / 8,)


@pytest.mark.usefixtures("every_pass")
def test_a_new_threshold_starts_a_new_window():
    sensing = telemetry(threshold=0.0)
    sensing.observe(torch.ones(4, 11), -1)
    sensing.set_threshold(0.0)
    assert sensing.report().inactive_ratio == (0.0,) * 4
    sensing.set_threshold(-3.0)
    assert sensing.report() == SeedReport()


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_held_is_summed_by_the_threshold_that_comes_to_be_known(inplace):
    """What follows a place is seen only behind it; nothing that was looked at is lost for that."""
    known, held, ys = telemetry(threshold=0.0), telemetry(threshold=None), outputs((37, 11), -1)
    observed(known, ys, -1)
    with held.holding():
        for y in ys:
            seen = y.clone()
            held.observe(seen, -1)
            if inplace:
                seen.relu_()
        held.set_threshold(0.0)
    sums = slice(0, len(known.sums))
    assert torch.equal(held.sums[sums], known.sums[sums])


@pytest.mark.usefixtures("every_pass")
def test_a_window_knows_nothing_of_the_one_before():
    torch.manual_seed(0)
    sensing, fresh, ys = telemetry(), telemetry(), outputs((37, 11), -1)
    observed(sensing, [1000 + y for y in ys], -1)
    sensing.reset()
    torch.manual_seed(1)
    observed(sensing, ys, -1)
    torch.manual_seed(1)
    observed(fresh, ys, -1)
    assert same(sensing, fresh)


@pytest.mark.usefixtures("every_pass")
def test_another_chunking_loses_nothing():
    torch.manual_seed(0)
    sensing, ys = telemetry(), outputs((37, 11), -1)
    gradients = observed(sensing, ys, -1)
    before = sensing.report()
    for seeds in (1, 2, 5, 11):
        bounds = chunk_bounds(CHANNELS, seeds).tolist()
        sensing.rebound(bounds)
        assert_equal_reports(sensing.report(), by_loop(all_vectors(ys, -1), all_vectors(gradients, -1), bounds))
    sensing.rebound(BOUNDS)
    assert sensing.report() == before


BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "huge": 1e30}


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_vectors_that_are_not_finite_are_left_out(bad, first):
    """Also where all vectors of the first pass are bad, and its mean no pivot."""
    torch.manual_seed(0)
    sensing, ys = telemetry(), outputs((37, 11), -1)
    broken = torch.full((5, 11), BAD[bad])
    if first:
        sensing.observe(broken, -1)
        assert sensing.report() == SeedReport()
    mixed = [y.clone() for y in ys]
    for y in mixed:
        y[3, 2], y[8] = BAD[bad], BAD[bad]
    kept = [index for index in range(37) if index not in (3, 8)]
    gradients = [torch.randn_like(y) for y in ys]
    for y, gradient in zip(mixed, gradients, strict=True):
        y = y.requires_grad_() * 1
        sensing.observe(y, -1)
        spoiled = gradient.clone()
        spoiled[5, 1] = BAD[bad]
        y.backward(spoiled)
    fair = [gradient[[index for index in range(37) if index != 5]] for gradient in gradients]
    expected = by_loop(all_vectors([y[kept] for y in ys], -1), all_vectors(fair, -1))
    assert_equal_reports(sensing.report(), expected)
    assert sensing.gradient_noise() is not None
    assert all(buffer.isfinite().all() for buffer in sensing.buffers())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_sums_that_are_not_finite_are_told(value):
    telemetry = Telemetry([0, 2, 4], 64, torch.device("cpu"))
    for buffer in telemetry.buffers():
        buffer.fill_(value)
    report = telemetry.report()
    assert not torch.isfinite(torch.tensor([report.chunk_variance, report.gradient_norm])).any()


def test_an_eighth_of_the_passes_is_looked_at_the_first_among_them():
    sensing = telemetry()
    sensing.observe(torch.ones(1, 11), -1)
    assert sensing.sums[-1] == 1
    for _ in range(999):
        sensing.observe(torch.ones(1, 11), -1)
    assert abs(int(sensing.sums[-1]) - 125) <= 2


def looks_per_call(calls: int) -> list[int]:
    """How often each of the calls per step is looked at in 800 steps."""
    sensing, looks = telemetry((0, 1)), [0] * calls
    for turn in range(calls * 800):
        before = float(sensing.sums[-1])
        sensing.observe(torch.ones(1, 1), -1)
        looks[turn % calls] += int(sensing.sums[-1] > before)
    return looks


@pytest.mark.parametrize("calls", range(2, 9))
def test_no_call_of_a_shared_module_is_overlooked(calls):
    """Its place is called several times in each step; every call has its share of the looks, up to a tenth."""
    assert max(abs(looks - 100) for looks in looks_per_call(calls)) <= 10


def test_looking_at_every_eighth_pass_would_overlook_calls(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(reference, "GOLDEN_RATIO", 2**61)
    assert looks_per_call(8) == [800, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(
    ("batch", "positions", "rows"),
    [
        *[(256, 1, 32), (100, 1, 32), (8, 1, 32), (8, 512, 32), (1, 512, 32), (64, 49, 32), (128, 4096, 32)],
        *[(40, 33, 32), (5, 3, 32), (7, 197, 32), (20, 9, 32), (3, 2, 1), (33, 2, 2)],
    ],
)
def test_the_vectors_are_few_and_spread_over_the_batch_first_then_over_the_positions(axis, batch, positions, rows):
    places_BP = torch.arange(batch * positions, dtype=torch.float64).view(batch, positions)
    y = torch.stack((places_BP, -places_BP), dim=axis)
    if positions == 1:
        y = y.flatten(1)
    x_NC = sampled(y, axis, rows)
    assert torch.equal(x_NC[:, 0], -x_NC[:, 1])
    chosen = x_NC[:, 0].long()
    samples, spots = chosen // positions, chosen % positions
    count = len(chosen.unique())
    assert count == len(chosen) <= rows
    assert 2 * count >= min(rows, batch * positions)
    assert 2 * len(samples.unique()) >= min(batch, rows)
    assert 2 * len(spots.unique()) >= min(positions, rows)
    for indices, size in ((samples.unique(), batch), (spots.unique(), positions)):
        steps = indices.diff()
        assert len(steps.unique()) <= 1
        assert len(indices) == 1 or (indices[-1] - indices[0]) * 2 >= (size - 1)


class Watched(nn.Linear):
    """A host layer with its telemetry in the simplest form."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.sensing = telemetry(chunk_bounds(outputs, 3).tolist(), threshold=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.sensing.observe(y, -1)
        return y


def model() -> nn.Sequential:
    """The commonest pattern there is: the activation overwrites what the tap sits on."""
    torch.manual_seed(3)
    return nn.Sequential(Watched(6, 11), nn.ReLU(inplace=True), nn.Dropout(0.3), Watched(11, 7))


X = torch.linspace(-1, 1, 20 * 6).view(20, 6).sin()


def trained(host: nn.Module, run=None, steps: int = 6) -> list[Tensor]:
    """Outputs, gradients and the random state after a few passes."""
    torch.manual_seed(5)
    seen = []
    for step in range(steps):
        y = (run or host)(X + step)
        y.square().mean().backward()
        seen += [y.detach(), *(parameter.grad.clone() for parameter in host.parameters())]
    return [*seen, torch.get_rng_state()]


def sensed(host: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in host.named_buffers()}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = sensed(one), sensed(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_compiled(eager: nn.Module, compiled: nn.Module) -> bool:
    """The same, or, where hooks do not compile, the same but for gradients, of which there are none."""
    mine, theirs = sensed(eager), sensed(compiled)
    if not COMPILES_HOOKS:
        mine = {name: torch.zeros_like(value) if "gradient" in name else value for name, value in mine.items()}
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("autocast", [False, True])
def test_the_tap_changes_no_bit(autocast):
    watched, bare = model(), model()
    for layer in bare:
        if isinstance(layer, Watched):
            layer.sensing.rows = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        one, other = trained(watched), trained(bare)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert all(report_of(watched, index).gradient_norm is not None for index in (0, 3))


def report_of(host: nn.Sequential, index: int) -> SeedReport:
    layer = host[index]
    assert isinstance(layer, Watched)
    return layer.sensing.report()


@pytest.mark.usefixtures("every_pass")
def test_the_tap_sees_the_gradient_in_front_of_an_in_place_activation():
    host = nn.Sequential(Watched(6, 11), nn.ReLU(inplace=True))
    host(X).backward(torch.ones(20, 11))
    before = nn.functional.linear(X, host[0].weight, host[0].bias)
    expected = by_loop(before.double(), (before > 0).double(), chunk_bounds(11, 3).tolist(), 0.0)
    assert_equal_reports(report_of(host, 0), expected)


@pytest.mark.usefixtures("every_pass")
def test_a_gradient_is_divided_by_the_scale_of_the_loss():
    plain, scaled = model().eval(), model().eval()
    for host, scale in ((plain, 1.0), (scaled, 65536.0)):
        for layer in (host[0], host[3]):
            layer.train()
        (scale * host(X).square().mean()).backward()
    norm = report_of(plain, 0).gradient_norm
    assert scaled[0].sensing.report(gradient_scale=65536.0).gradient_norm == pytest.approx(norm, rel=1e-6)
    assert report_of(scaled, 0).gradient_norm == pytest.approx([65536 * value for value in norm], rel=1e-6)


@pytest.mark.usefixtures("every_pass")
def test_a_graph_may_be_walked_twice_and_differentiated_twice():
    host = model()
    loss = host(X).square().mean()
    loss.backward(retain_graph=True)
    gradients = torch.autograd.grad(loss, list(host.parameters()), create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()
    assert host[0].sensing.gradient_steps[1] >= 2
    assert all(buffer.isfinite().all() and not buffer.requires_grad for buffer in host.buffers())


@pytest.mark.usefixtures("every_pass")
def test_an_output_that_is_a_leaf_gathers_no_hooks():
    """A host that passes its input through may hand over a parameter; a hook would stay on it for ever."""
    sensing, leaf = telemetry(), torch.ones(4, 11, requires_grad=True)
    for _ in range(3):
        sensing.observe(leaf, -1)
    assert not leaf._backward_hooks


@pytest.mark.parametrize("rows", [0, 24])
def test_a_pass_that_shows_no_vector_is_counted(rows):
    """By that it is known whether a step calls the place."""
    sensing = telemetry(rows=rows)
    sensing.observe(torch.zeros(0, 11), -1)
    assert sensing.turns == [0, 1]
    assert not sensing.sums.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_every_row_counts_once_under_gradient_checkpointing(reentrant):
    plain, saving = model(), model()
    run = partial(checkpoint, saving, use_reentrant=reentrant)
    one, other = trained(plain), trained(saving, lambda x: run(x.requires_grad_()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert same(plain, saving)
    assert plain[0].sensing.gradient_steps[1] == 2  # turns 0 and 5 of six


@pytest.mark.usefixtures("every_pass")
def test_counting_in_a_repeated_pass_would_count_twice(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: -1)
    host = model()
    trained(host, partial(checkpoint, host, use_reentrant=False), steps=1)
    assert host[0].sensing.sums[-1] > 20


@pytest.mark.usefixtures("every_pass")
def test_a_compiled_model_senses_the_same_without_a_graph_break():
    eager, compiled = model(), model()
    one = trained(eager)
    other = trained(compiled, torch.compile(compiled, fullgraph=True, backend="aot_eager"))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert same_compiled(eager, compiled)


@pytest.mark.usefixtures("every_pass")
def test_a_compiled_model_is_not_compiled_again_when_a_window_begins():
    host = model()
    run = torch.compile(host, fullgraph=True, backend="aot_eager")
    trained(host, run, steps=1)
    with torch.compiler.set_stance("fail_on_recompile"):
        trained(host, run, steps=2)
        host[0].sensing.reset()
        host[0].sensing.rebound((0, 4, 11))
        trained(host, run, steps=1)
    assert host[0].sensing.sums[-1] == 20


@pytest.mark.usefixtures("every_pass")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_model_counts_once_under_gradient_checkpointing(reentrant):
    plain, saving = model(), model()
    compiled = torch.compile(saving, fullgraph=True, backend="aot_eager")
    trained(plain)
    trained(saving, lambda x: checkpoint(compiled, x.requires_grad_(), use_reentrant=reentrant))
    assert same_compiled(plain, saving)


@pytest.mark.usefixtures("every_pass")
@pytest.mark.long
def test_a_compiled_model_takes_other_batch_sizes():
    eager, host = model().eval(), model().eval()
    run = torch.compile(host, fullgraph=True, backend="aot_eager", dynamic=True)
    for watched in (eager, host):
        watched[0].train(), watched[3].train()
    for size in (20, 12, 17):
        eager(X[:size]).sum().backward()
        run(X[:size]).sum().backward()
    assert same_compiled(eager, host)


@pytest.mark.usefixtures("every_pass")
def test_sensing_never_waits_for_the_device():
    """On the meta device there is no value that could be asked for. Negative control: a report does ask."""
    host = model().to("meta")
    host(X.to("meta")).square().mean().backward()
    for ask in (host[0].sensing.report, host[0].sensing.gradient_noise):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            ask()


@pytest.mark.usefixtures("every_pass")
def test_gradient_noise_is_the_spread_of_the_norm_from_step_to_step():
    torch.manual_seed(0)
    sensing, ys = telemetry(), outputs((37, 11), -1, passes=9)
    gradients = observed(sensing, ys, -1)
    norms = torch.stack([gradient.double().square().mean().sqrt() for gradient in gradients])
    assert sensing.gradient_noise() == pytest.approx(float(norms.std() / norms.mean()), rel=1e-5)
    once = telemetry()
    observed(once, ys[:1], -1)
    assert once.gradient_noise() is None


@pytest.mark.parametrize("how", ["deepcopy", "state_dict"])
def test_a_copy_goes_on_as_the_original_would(how):
    """Also with whose turn it is."""
    torch.manual_seed(0)
    original, ys = telemetry(), outputs((37, 11), -1, passes=7)
    observed(original, ys[:4], -1)
    if how == "deepcopy":
        twin = copy.deepcopy(original)
    else:
        twin = telemetry()
        twin.load_state_dict(original.state_dict(), strict=True)
    for sensing in (original, twin):
        torch.manual_seed(1)
        observed(sensing, ys[4:], -1)
    assert same(original, twin)
    assert original.turns == twin.turns == [0, 7]
    assert original.report() == twin.report()
    twin.reset()
    assert original.report().chunk_variance is not None


def test_a_thousand_seeds_weigh_less_than_two_percent_of_their_layer():
    host = nn.Linear(1024, 1024)
    kept = [SeedState(1000), Telemetry(chunk_bounds(1024, 1000).tolist(), 32, CPU)]
    kept_bytes = sum(buffer.nbytes for part in kept for buffer in part.buffers())
    assert kept_bytes < 100_000
    assert kept_bytes < 0.02 * sum(parameter.nbytes for parameter in host.parameters())
