"""Isolated training: what it does to the host (nothing), what it learns, and what held-out samples make of it."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper.blueprints.blueprint import Ports
from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.objectives import OBJECTIVES, first_order_gain, pseudo_residual, relative_error
from esper.kasmina.grafts.trainee import MAX_ELEMENTS, MAX_SAMPLES, Trainee
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import host_state_dict
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import host_grads, mlp, place_of, wrapped
from tests.kasmina.lone import germinate, lone_place

every = pytest.mark.parametrize("objective", OBJECTIVES)
WIDTHS = (6, 12, 12, 4)
LR = 3e-3


def incubate(place, seed_id, lifecycle: int, objective: str, **settings) -> None:
    germinate(place, seed_id, lifecycle, hidden=8, **settings)
    transition(place, Command(place.layer_id, seed_id, State.TRAINING))
    assert place.incubation.begin(place.arena.grafts[lifecycle], objective, place.seed, LR)


class Bench:
    """An MLP with four seeds at its middle layer, learning a nonlinear task from a stream of batches of its own."""

    def __init__(self, is_bare: bool = False, is_noise: bool = False, lr: float = 1e-2):
        self.model = mlp(*WIDTHS)
        if not is_bare:
            wrapped(self.model, {"2": 4})
            self.place = place_of(self.model, "2")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        if not is_bare:
            SlotOptimizer(places(self.model), self.optimizer, lambda: 1e-2, 0.01)
        self.generator = torch.Generator().manual_seed(0)
        self.is_noise = is_noise

    def batch(self, size: int = 64):
        x = torch.randn(size, 6, generator=self.generator)
        target = (x[:, 0] > 0).long() + 2 * (x[:, 1].abs() > 0.7).long()
        return x, torch.randint(0, 4, (size,), generator=self.generator) if self.is_noise else target

    def backward(self, scale: float = 1.0) -> torch.Tensor:
        x, target = self.batch()
        output = nn.functional.dropout(self.model(x), 0.1)  # draws from the global random state
        (scale * nn.functional.cross_entropy(output, target)).backward()
        return output.detach()

    def train(self, steps: int, *lifecycles: int) -> list[torch.Tensor]:
        outputs = []
        for _ in range(steps):
            outputs.append(self.backward())
            outputs.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1))
            outputs.extend(host_grads(self.model).values())
            self.optimizer.step()
            self.optimizer.zero_grad()
            for lifecycle in lifecycles:
                self.place.incubation.learn(lifecycle)
        return outputs


def bytes_of(place, lifecycle: int) -> torch.Tensor:
    return place.incubation.get_buffer(f"params_{lifecycle}").clone()


def heldout_error(bench: Bench, lifecycle: int, params: torch.Tensor) -> float:
    """Of the objective, on samples drawn after training."""
    place, graft = bench.place, bench.place.arena.grafts[lifecycle]
    fresh = Bench()
    fresh.model.load_state_dict(bench.model.state_dict())
    fresh.generator.manual_seed(99)
    trainee = place.incubation._trainees[lifecycle]
    other = fresh.place.incubation
    other.regrow({"trainees": [Trainee(graft, trainee.objective, 0, LR).to_dict()]})
    for _ in range(16):
        fresh.backward()
    x, chunk = other.get_buffer(f"x_{lifecycle}"), other.get_buffer(f"chunk_{lifecycle}")
    residual = pseudo_residual(other.get_buffer(f"gradient_{lifecycle}"), other._output_power(lifecycle))
    x, target = OBJECTIVES[trainee.objective](x, chunk, residual, torch.Generator().manual_seed(5))
    return float(relative_error(graft.blueprint.delta(graft.unflatten(params), x), target, torch.ones(len(x)) > 0))


# The host


@every
@pytest.mark.parametrize("reads", ["input", "chunk"])
def test_the_host_trains_bit_for_bit_as_without_esper(objective, reads):
    """Outputs, what clipping returns, gradients, weights and the global random state, two seeds at a time."""
    results = []
    for is_bare in (True, False):
        torch.manual_seed(1)
        bench = Bench(is_bare)
        outputs = bench.train(5)
        if not is_bare:
            incubate(bench.place, 0, 1, objective, reads=reads)
            incubate(bench.place, 2, 2, objective, reads=reads)
        outputs += bench.train(20, *(() if is_bare else (1, 2)))
        if not is_bare:
            assert int(bench.place.incubation.get_buffer("seen_2")) == 20 * 64
            assert bench.place.arena.slots.grad is None
            bench.place.incubation.end(1)
        outputs += bench.train(2)
        weights = list(host_state_dict(bench.model).values())
        results.append([*outputs, *weights, torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_graft_that_took_part_would_be_seen():
    """Negative control of the comparison above: the same graft, blended in by a tenth."""
    outputs = []
    for alpha in (0.0, 0.1):
        bench = Bench()
        bench.train(50)
        incubate(bench.place, "all", 1, "pseudo_residual")
        bench.train(50, 1)
        transition(bench.place, Command("2", "all", State.GRAFTING))
        with torch.no_grad():
            bench.place.arena.slots += 0.01
        bench.place.state.alpha.fill_(alpha)
        outputs.append(bench.model(torch.ones(3, 6)))
    assert not torch.equal(*outputs)


def test_nothing_is_watched_in_eval_mode_or_without_gradients():
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    bench.model.eval()
    bench.backward()
    bench.model.train()
    with torch.no_grad():
        bench.model(bench.batch()[0])
    assert "seen_1" not in dict(bench.place.incubation.named_buffers())


def test_a_place_without_incubating_seeds_holds_nothing():
    place = lone_place()
    assert sum(buffer.numel() for buffer in place.incubation.buffers()) == 0
    assert place.incubation.topology() == {"trainees": []}
    assert not place.incubation.is_active


@pytest.mark.parametrize("how", ["end", "discard"])
def test_when_it_is_over_the_reservoir_is_returned_and_forwards_are_left_alone(how):
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    assert {activity.places for activity in bench.place.arena.activities} == {1}
    bench.train(3, 1)
    getattr(bench.place.incubation, how)(1)
    assert not bench.place.incubation.is_active
    assert {activity.places for activity in bench.place.arena.activities} == {0}
    left = {name: buffer.numel() for name, buffer in bench.place.incubation.named_buffers() if buffer.numel()}
    assert left == ({"params_1": 131} if how == "end" else {})


# Samples


def test_each_sample_counts_once_under_gradient_checkpointing():
    for use_reentrant in (True, False):
        bench = Bench()
        incubate(bench.place, 0, 1, "pseudo_residual")
        x, target = bench.batch()
        output = checkpoint(bench.model, x.requires_grad_(), use_reentrant=use_reentrant)
        nn.functional.cross_entropy(output, target).backward()
        assert int(bench.place.incubation.get_buffer("seen_1")) == 64


def test_what_is_kept_is_what_the_host_did():
    """Features, chunk, and the loss gradient at the chunk in units of its root mean square."""
    bench = Bench()
    incubate(bench.place, 1, 1, "pseudo_residual")
    seen = {}
    handles = [
        bench.model[2].register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach())),
        bench.model[2].register_forward_hook(lambda _, __, y: seen.update(y=y.detach().clone()) or _tap(seen, y)),
    ]
    bench.backward()
    for handle in handles:
        handle.remove()
    incubation, gradient = bench.place.incubation, seen["g"][:, 3:6]
    assert torch.equal(incubation.get_buffer("x_1")[:64], seen["x"])
    assert torch.equal(incubation.get_buffer("chunk_1")[:64], seen["y"][:, 3:6])
    torch.testing.assert_close(incubation.get_buffer("gradient_1")[:64], gradient / gradient.square().mean().sqrt())
    torch.testing.assert_close(incubation.get_buffer("power_1")[:64], seen["y"].square().mean(1))
    assert incubation.get_buffer("counts_1").sum() == 64


def _tap(seen: dict, y: torch.Tensor) -> None:
    y.register_hook(lambda gradient: seen.update(g=gradient))


def test_neither_a_gradient_scaler_nor_the_batch_size_shows():
    kept = []
    for scale in (1.0, 1024.0):
        bench = Bench()
        incubate(bench.place, 0, 1, "pseudo_residual")
        torch.manual_seed(0)
        bench.backward(scale)
        kept.append(bench.place.incubation.get_buffer("gradient_1").clone())
    torch.testing.assert_close(*kept)


def test_the_reservoir_is_a_bounded_ring_of_the_latest():
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    bench.train(MAX_SAMPLES // 64 + 1)
    incubation = bench.place.incubation
    assert incubation.get_buffer("x_1").shape == (MAX_SAMPLES, 12)
    assert incubation.get_buffer("counts_1").all()
    bench.generator.manual_seed(7)
    bench.train(1)
    bench.generator.manual_seed(7)
    with torch.no_grad():
        expected = bench.model[1](bench.model[0](bench.batch()[0]))
    torch.testing.assert_close(incubation.get_buffer("x_1")[64:128], expected, rtol=0.1, atol=0.1)  # one step on


@pytest.mark.parametrize(
    ("shapes", "capacity"),
    [
        (((12,), (3,)), MAX_SAMPLES),
        (((1024, 768), (1024, 12)), MAX_ELEMENTS // (1024 * 792)),
        (((4096, 4096), (4096, 4096)), 0),
    ],
)
def test_a_reservoir_never_holds_more_than_its_bound(shapes, capacity):
    place = lone_place()
    germinate(place, 0, 1)
    assert Trainee(place.arena.grafts[1], "reconstruction", 0, LR, shapes=shapes).capacity == capacity


def test_held_out_samples_are_never_trained_on():
    """Were they, other held-out samples would make other parameters; other training samples do."""
    changed = {}
    for which in (None, 3, 2):  # nothing, a held-out sample, one that is trained on
        bench = Bench()
        incubate(bench.place, 0, 1, "pseudo_residual")
        bench.train(4)
        if which is not None:
            for name in ("x", "chunk", "gradient"):
                bench.place.incubation.get_buffer(f"{name}_1")[which::4] *= -3
        for _ in range(5):
            bench.place.incubation.learn(1)
        changed[which] = bytes_of(bench.place, 1)
    assert torch.equal(changed[None], changed[3])
    assert not torch.equal(changed[None], changed[2])


def test_samples_that_are_not_finite_are_left_out():
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    incubation, weight = bench.place.incubation, bench.model[2].weight
    bench.train(2)
    x, target = bench.batch()
    x[5] = torch.nan
    x[6] = torch.inf
    nn.functional.cross_entropy(bench.model(x), target, reduction="none")[[0, 1, 2, *range(7, 64)]].sum().backward()
    bench.optimizer.zero_grad()
    counts = incubation.get_buffer("counts_1")[128:192]
    assert counts.tolist() == [index not in (5, 6) for index in range(64)]
    for _ in range(5):
        incubation.learn(1)
    measured = incubation.end(1)
    assert torch.isfinite(bytes_of(bench.place, 1)).all()
    assert all(value == value for value in measured.values())
    assert torch.isfinite(weight).all()


def test_from_samples_none_of_which_is_finite_nothing_is_learned():
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    before = bytes_of(bench.place, 1)
    bench.model(bench.batch()[0] * torch.nan).sum().backward()
    bench.place.incubation.learn(1)
    assert torch.equal(bytes_of(bench.place, 1), before)
    assert bench.place.incubation.end(1) == {"heldout_samples": 0.0, "heldout_scale": 0.0}
    assert torch.equal(bytes_of(bench.place, 1), before)


def test_tokens_are_kept_whole_and_batches_of_another_length_left_out():
    model = wrapped(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), {"0": 2})
    place = place_of(model, "0")
    place.site.__dict__["ports"] = Ports(6, 8, "tokens", 5)  # frozen; only here does a test say what the host is
    incubate(place, 0, 1, "reconstruction")
    for batch, tokens in ((3, 5), (2, 9), (4, 5)):
        model(torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert place.incubation.get_buffer("x_1").shape[1:] == (5, 6)
    assert place.incubation.get_buffer("chunk_1").shape[1:] == (5, 4)
    assert int(place.incubation.get_buffer("seen_1")) == 7


def test_images_are_kept_whole_with_their_channels_last():
    model = wrapped(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)), {"0": 2})
    place = place_of(model, "0")
    transition(
        place, Command("0", 1, State.GERMINATED, blueprint="conv_bottleneck", settings={"hidden": 2}), birth=Birth(1, 4)
    )
    place.incubation.begin(place.arena.grafts[1], "pseudo_residual", 0, LR)
    x = torch.randn(9, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    with torch.no_grad():
        y = nn.functional.conv2d(x, model[0].weight, model[0].bias, padding=1)
    assert torch.equal(place.incubation.get_buffer("x_1")[:9], x.movedim(1, -1))
    torch.testing.assert_close(place.incubation.get_buffer("chunk_1")[:9], y.movedim(1, -1)[..., 4:])
    before = bytes_of(place, 1)
    place.incubation.learn(1)
    assert not torch.equal(bytes_of(place, 1), before)
    assert place.incubation.end(1)["heldout_samples"] == 2.0


# Learning


@every
def test_it_learns_its_objective_on_samples_that_it_never_saw(objective):
    bench = Bench(lr=1e-3)
    bench.train(20)
    incubate(bench.place, "all", 1, objective)
    at_birth = heldout_error(bench, 1, bytes_of(bench.place, 1))
    bench.train(100, 1)
    assert at_birth == pytest.approx(1.0)
    assert heldout_error(bench, 1, bytes_of(bench.place, 1)) < 0.9


def test_at_once_the_loss_is_lower_with_what_held_out_samples_chose():
    bench = Bench(lr=1e-3)
    bench.train(20)
    incubate(bench.place, "all", 1, "pseudo_residual")
    bench.train(100, 1)
    x, target = bench.batch(2048)

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(bench.model(x), target))

    before, measured = loss(), bench.place.incubation.end(1)
    transition(bench.place, Command("2", "all", State.GRAFTING))
    assert loss() == before  # alpha is 0
    bench.place.state.alpha.fill_(1.0)
    assert loss() < before
    assert measured["heldout_scale"] > 0
    assert measured["heldout_gain"] > 0.05
    assert measured["heldout_z"] > 2.33
    assert measured["heldout_descent"] > 0.2
    assert measured["heldout_samples"] == MAX_SAMPLES / 4


@pytest.mark.parametrize("seed", range(3))
def test_where_the_gradient_is_noise_the_scale_is_zero(seed):
    """The graft goes on as the exact identity, with first layers that have learned."""
    bench = Bench(is_noise=True)
    bench.generator.manual_seed(seed)
    bench.train(60)
    incubate(bench.place, "all", 1, "pseudo_residual")
    birth = bytes_of(bench.place, 1)
    bench.train(100, 1)
    learned = bytes_of(bench.place, 1)
    measured = bench.place.incubation.end(1)
    assert measured["heldout_scale"] == measured["heldout_gain"] == 0.0
    graft, chosen = bench.place.arena.grafts[1], bytes_of(bench.place, 1)
    assert not graft.blueprint.delta(graft.unflatten(chosen), torch.randn(9, 12)).any()
    assert torch.equal(graft.unflatten(chosen)["w1"], graft.unflatten(learned)["w1"])
    assert not torch.equal(graft.unflatten(chosen)["w1"], graft.unflatten(birth)["w1"])


def test_a_blueprint_that_cannot_be_scaled_to_nothing_goes_on_as_it_was_born():
    bench = Bench(is_noise=True)
    bench.train(20)
    transition(
        bench.place,
        Command("2", 0, State.GERMINATED, blueprint="placebo", settings={"hidden": 2}),
        birth=Birth(1, 4),
    )
    place = bench.place
    original = type(place.arena.grafts[1].blueprint)
    birth = place.arena.grafts[1].birth(place.seed)
    place.incubation.begin(place.arena.grafts[1], "pseudo_residual", place.seed, LR)
    bench.train(20, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original, "delta", lambda self, params, x: (x @ params["w1"].T)[:, :1].expand(-1, 3) * 50)
        assert place.incubation.end(1)["heldout_scale"] == 0.0
    assert torch.equal(bytes_of(place, 1), birth)


@every
def test_what_was_chosen_is_what_is_planted(objective):
    bench = Bench()
    incubate(bench.place, 0, 1, objective)
    bench.train(20, 1)
    bench.place.incubation.end(1)
    chosen = bytes_of(bench.place, 1)
    transition(bench.place, Command("2", 0, State.GRAFTING))
    assert torch.equal(bench.place.arena.params_of(bench.place.arena.grafts[1]), chosen)
    assert bench.place.incubation.topology() == {"trainees": []}


@pytest.mark.parametrize("outcome", [State.CULLED, State.CANCELLED, State.ROLLED_BACK])
def test_an_outcome_throws_it_away(outcome):
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    incubate(bench.place, 1, 2, "pseudo_residual")
    bench.train(2, 1, 2)
    transition(bench.place, Command("2", 0, outcome))
    assert [saved["graft"]["lifecycle"] for saved in bench.place.incubation.topology()["trainees"]] == [2]
    transition(bench.place, Command("2", 1, outcome))
    assert not bench.place.incubation.is_active


def test_without_an_objective_or_for_a_control_that_never_trains_nothing_begins():
    place = lone_place()
    germinate(place, 0, 1)
    transition(place, Command("fc", 1, State.GERMINATED, blueprint="random_frozen"), birth=Birth(2, 4))
    assert not place.incubation.begin(place.arena.grafts[1], "none", 0, LR)
    assert not place.incubation.begin(place.arena.grafts[2], "pseudo_residual", 0, LR)
    place.incubation.learn(1)
    assert place.incubation.end(1) == {}
    transition(place, Command("fc", 0, State.TRAINING))
    transition(place, Command("fc", 0, State.GRAFTING))
    graft = place.arena.grafts[1]
    assert torch.equal(place.arena.params_of(graft), graft.birth(place.seed))


def test_an_unknown_objective_is_refused_with_the_list_of_those_there_are():
    place = lone_place()
    germinate(place, 0, 1)
    with pytest.raises(ConfigError, match=r"no objective 'reconstruct'\. Did you mean 'reconstruction'.*none, pseudo"):
        place.incubation.begin(place.arena.grafts[1], "reconstruct", 0, LR)


# First order


def stationary_host(rows: int = 400):
    """A linear layer ``y = W x + b`` under a nonlinear loss, at a point where the gradients of W and b vanish."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    target = torch.sin(2 * x[:, :3] * x[:, 1:4])
    weight, bias = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (3,)))

    def host_loss(y):
        return (torch.tanh(y) - target).square().mean()

    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = host_loss(nn.functional.linear(x, weight, bias))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(weight.grad.abs().max()) < 1e-7
    y = nn.functional.linear(x, weight, bias).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(host_loss(y), y)
    assert float(gradient.norm()) > 1e-3
    return x, y.detach(), gradient


def test_at_a_stationary_host_no_linear_graft_on_its_own_input_gains_to_first_order():
    """Gain and its gradient are zero whatever the graft's parameters, so pseudo_residual cannot teach it anything."""
    x, _, gradient = stationary_host()
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        a = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        b = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
        gain = first_order_gain(gradient, nn.functional.linear(x, a, b))
        slopes = torch.autograd.grad(gain, (a, b))
        assert abs(gain.item()) < 1e-6
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-6


def test_at_a_stationary_host_a_reconstruction_gains_nothing_to_first_order():
    _, y, gradient = stationary_host()
    assert abs(float(first_order_gain(gradient, y))) < 1e-6


def test_at_a_stationary_host_a_nonlinear_graft_does_gain():
    """Negative control: the two tests above say something about linear grafts, not about the measure."""
    x, _, gradient = stationary_host()
    w1 = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w2 = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    gain = first_order_gain(gradient, nn.functional.linear(nn.functional.gelu(x @ w1.T), w2))
    (slope,) = torch.autograd.grad(gain, w2)
    assert float(slope.abs().max()) > 1e-3


# Copies


def busy() -> Bench:
    bench = Bench()
    incubate(bench.place, 0, 1, "pseudo_residual")
    incubate(bench.place, 1, 2, "reconstruction", reads="chunk")
    incubate(bench.place, 2, 3, "pseudo_residual")
    bench.train(10, 1, 2, 3)
    bench.place.incubation.end(3)
    incubate(bench.place, 3, 4, "reconstruction")  # has no samples yet
    return bench


def state_of(bench: Bench) -> list[torch.Tensor]:
    state = bench.place.incubation.state_dict()
    return [state[name].clone() for name in sorted(state)]


def loaded(bench: Bench) -> Bench:
    other = Bench()
    other.model.load_state_dict(bench.model.state_dict())
    return other


def deep_copied(bench: Bench) -> Bench:
    other = Bench()
    other.model = copy.deepcopy(bench.model)
    other.place = place_of(other.model, "2")
    other.optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-2)
    return other


def snapshot(bench: Bench) -> Bench:
    """As the runtime does: topology as JSON first, then bytes by name."""
    other = Bench()
    other.train(3)
    place = other.place
    place.regrow(json.loads(json.dumps(bench.place.topology())))
    theirs = dict(bench.model.named_buffers()) | dict(bench.model.named_parameters())
    with torch.no_grad():
        for name, tensor in [*other.model.named_buffers(), *other.model.named_parameters()]:
            if ".groups." not in name:
                tensor.copy_(theirs[name])
    return other


@pytest.mark.parametrize("make_copy", [loaded, deep_copied, snapshot])
def test_a_copy_goes_on_bit_for_bit(make_copy):
    bench = busy()
    other = make_copy(bench)
    other.optimizer.load_state_dict(copy.deepcopy(bench.optimizer.state_dict()))
    other.generator.set_state(bench.generator.get_state())
    assert {activity.places for activity in other.place.arena.activities} == {1}
    for one in (bench, other):
        torch.manual_seed(5)
        one.train(10, 1, 2, 4)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(state_of(bench), state_of(other), strict=True))
    assert bench.place.incubation.topology() == other.place.incubation.topology()
    assert [bench.place.incubation.end(n) for n in (1, 2, 4)] == [other.place.incubation.end(n) for n in (1, 2, 4)]
    for one in (bench, other):
        assert not one.place.incubation.is_active
        assert {activity.places for activity in one.place.arena.activities} == {0}


def test_loading_a_state_without_incubation_takes_it_away():
    bench, before = busy(), Bench()
    bench.model.load_state_dict(before.model.state_dict())
    assert bench.place.incubation.topology() == {"trainees": []}
    assert {activity.places for activity in bench.place.arena.activities} == {0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_reaches_none_of_it(dtype):
    bench = busy()
    before = state_of(bench)
    bench.model.to(dtype)
    after = state_of(bench)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(before, after, strict=True))


def test_a_host_in_half_precision_is_incubated_in_single():
    model = wrapped(mlp(*WIDTHS).bfloat16(), {"2": 4})
    place = place_of(model, "2")
    incubate(place, 0, 1, "pseudo_residual")
    for _ in range(4):
        model(
            torch.randn(16, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
        ).float().square().sum().backward()
        place.incubation.learn(1)
    assert bytes_of(place, 1).dtype == torch.float32
    transition(place, Command("2", 0, State.GRAFTING))
    assert place.arena.slots.dtype == torch.bfloat16
    assert torch.isfinite(place.arena.slots).all()


def test_seeds_of_one_place_incubate_as_each_would_alone():
    together, alone = Bench(), Bench()
    for seed, lifecycle in ((0, 1), (1, 2)):
        incubate(together.place, seed, lifecycle, "pseudo_residual")
    incubate(alone.place, 1, 2, "pseudo_residual")
    for bench, numbers in ((together, (1, 2)), (alone, (2,))):
        torch.manual_seed(0)
        bench.train(10, *numbers)
    assert torch.equal(bytes_of(together.place, 2), bytes_of(alone.place, 2))
    assert len(list(places(together.model))) == 1
