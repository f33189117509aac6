"""What grows in a compiled model: the same bytes as in an eager one, and torch compiles it a few times at the most."""

import copy
import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.decomposition import select_decomp_table
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import esper
from esper import GrowthConfig
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.grafts.activity import Activity
from esper.kasmina.places.compiled import OUTSIDE
from esper.kasmina.places.place import Place
from esper.kasmina.seeds.looks import Looks
from esper.tasks.gpt import Attention
from tests import warm
from tests.few import few
from tests.kasmina.colony_hosts import NETS
from tests.kasmina.growing import PATH, grow, mlp, place_of, release, remove, transition_to, wrapped
from tests.kasmina.test_colonies import grown as grown_colony
from tests.kasmina.test_colonies import passed
from tests.kasmina.test_zoo import build

pytestmark = pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning"
)

SEEDS = {"frozen": 4, "body.0": 4, "body": 1, "body.0:body.4": 1}


class Net(nn.Module):
    """A frozen layer, and blocks behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.body = nn.Linear(6, 12).requires_grad_(False), mlp(12, 16, 16, 12)

    def forward(self, x):
        return self.body(torch.relu(self.frozen(x)))


def host(**config) -> nn.Module:
    torch.manual_seed(0)
    return wrapped(Net(), [*SEEDS, "body.2"], seeds_per_layer=4, **config)


def step(model, run) -> list[torch.Tensor]:
    """Loss, all gradients, and what the seeds sense, of a training step."""
    for parameter in model.parameters():
        parameter.grad = None
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    loss = run(x).square().mean()
    loss.backward()
    grads = [torch.zeros(0) if one.grad is None else one.grad for one in model.parameters()]
    return [loss.detach(), *grads]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def wander(model, moves: int):
    """Seeds of three places make so many transitions, one after the other; yields after each."""
    rng = random.Random(0)
    spots = [(place_of(model, layer_id), seed) for layer_id, seeds in SEEDS.items() for seed in range(seeds)]
    made = 0
    while made < moves:
        place, seed = rng.choice(spots)
        end = rng.choice(PATH[1:])
        grow(place, seed, end, hidden=3, alpha=rng.random())
        made += 1 + PATH.index(end)
        yield
        if end is State.FOSSILIZED:
            release(place, seed)
        elif end in LIVE:
            remove(place, seed)
        else:
            transition_to(place, seed, State.CANCELLED)
            release(place, seed)
        made += 2
        yield


def compiled_times(monkeypatch, *, sees_all: bool) -> int:
    torch._dynamo.reset()
    if sees_all:
        monkeypatch.setattr(Activity, "is_on", property(lambda activity: activity.places > 0))
    model = host()
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(model, fullgraph=True, backend=counter)
    step(model, run)
    for _ in wander(model, 50):
        step(model, run)
    return counter.frame_count


def test_fifty_transitions_cost_three_compilations(monkeypatch):
    assert compiled_times(monkeypatch, sees_all=False) <= 3


def test_they_cost_more_where_the_compiler_sees_what_grows(monkeypatch):
    assert compiled_times(monkeypatch, sees_all=True) > 3


def test_it_computes_what_an_eager_model_does():
    torch._dynamo.reset()
    model = host()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    outcomes = []
    for _ in wander(model, 50):
        eager = step(model, model)
        assert same(eager, step(model, run))
        outcomes.append(eager[0])
    assert len({float(loss) for loss in outcomes}) > 5


def grown_host(**config) -> nn.Module:
    model = host(**config)
    grow(place_of(model, "frozen"), 0, State.FINE_TUNING, hidden=3)
    grow(place_of(model, "body"), "all", State.GRAFTING, hidden=3, alpha=0.4)
    grow(place_of(model, "body.0"), 1, State.FOSSILIZED, hidden=2)
    grow(place_of(model, "body.0:body.4"), 0, State.STABILIZATION, blueprint="low_rank")
    return model


def in_bfloat16(run):
    def inside(x):
        with torch.autocast("cpu", torch.bfloat16):
            return run(x).float()

    return inside


def checkpointed(reentrant: bool):
    return lambda run: lambda x: checkpoint(run, x.requires_grad_(), use_reentrant=reentrant)


@pytest.mark.parametrize(
    "way",
    [
        in_bfloat16,
        pytest.param(checkpointed(False), marks=pytest.mark.long),
        checkpointed(True),
        lambda run: lambda x: run(x) + run(x.flip(0)),
    ],
    ids=["autocast around it", "checkpointed", "checkpointed, reentrant", "two passes"],
)
def test_it_does_so_in_every_way_of_training(way):
    torch._dynamo.reset()
    model = grown_host()
    eager = step(model, way(model))
    assert same(eager, step(model, way(torch.compile(model, fullgraph=True, backend="aot_eager"))))
    assert any(grad.any() for grad in eager[1:])


def test_autocast_within_what_is_compiled():
    torch._dynamo.reset()
    model = grown_host()
    eager = step(model, in_bfloat16(model))
    assert same(eager, step(model, torch.compile(in_bfloat16(model), fullgraph=True, backend="aot_eager")))
    assert not same(eager, step(model, model))


@pytest.mark.parametrize("way", [lambda run: run, in_bfloat16], ids=["", "autocast"])
def test_grafts_that_are_computed_together(way):
    """Also in the first pass, in which torch looks at what operators do."""
    torch._dynamo.reset()
    model = host()
    for seed in range(3):
        grow(place_of(model, "body.0"), seed, State.GRAFTING, hidden=3, alpha=0.4)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    first = step(model, way(run))
    assert same(step(model, way(model)), first)
    assert same(step(model, way(run)), first)
    assert place_of(model, "body.0").arena.slots.grad.any()


@pytest.mark.parametrize("is_lost", [False, True], ids=["", "what torch keeps comes back as another tensor"])
def test_the_backward_pass_computes_no_graft_again_unless_its_way_back_is_lost(monkeypatch, is_lost):
    torch._dynamo.reset()
    model, calls = grown_host(), []
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = step(model, run)
    grow_once = Place._grown
    monkeypatch.setattr(Place, "_grown", lambda self, *a, **k: calls.append(self) or grow_once(self, *a, **k))
    hooks = saved_tensors_hooks(torch.clone, lambda kept: kept) if is_lost else nullcontext()
    with hooks:
        assert same(step(model, run), expected)
    assert len(calls) == len(set(calls)) * (2 if is_lost else 1)


def test_a_graph_that_is_kept_can_be_gone_back_twice():
    torch._dynamo.reset()
    model = grown_host()

    def grads(run):
        model.zero_grad()
        loss = run(torch.ones(2, 6)).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        return [one.grad for one in model.parameters() if one.grad is not None]

    assert same(grads(model), grads(torch.compile(model, fullgraph=True, backend="aot_eager")))


def test_inference_mode():
    torch._dynamo.reset()
    model = grown_host()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(run(torch.ones(2, 6)), model(torch.ones(2, 6)))
    assert same(step(model, run), step(model, model))


def test_a_module_that_was_imported_in_inference_mode_still_learns():
    """What the operator sets for itself is what holds where there is no mode."""
    code = (
        "import torch\nwith torch.inference_mode():\n from esper.kasmina.places.compiled import OUTSIDE\nprint(OUTSIDE)"
    )
    done = warm.run(["-c", code])
    assert done.stdout.strip() == str(OUTSIDE)
    with torch.inference_mode():
        assert str(torch._C._dispatch_tls_local_include_set()) not in done.stdout


def test_channels_of_images():
    torch._dynamo.reset()
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, stride=2))
    example = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    model = esper.wrap(convolutions, esper.GrowthConfig(layers=["0", "2"]), example)
    for layer_id in ("0", "2"):
        grow(place_of(model, layer_id), 0, State.FINE_TUNING, blueprint="depthwise_conv")
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (model, run):
        model.zero_grad()
        y = forward(example)
        y.square().mean().backward()
        results.append([y.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)])
        strides = y.stride()
    assert same(*results)
    assert strides == model(example).stride()


def test_a_graft_that_is_not_finite_is_contained():
    torch._dynamo.reset()
    model = grown_host()
    place = place_of(model, "frozen")
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    sound = step(model, run)
    with torch.no_grad():
        place.arena.slots[0] = torch.nan
    contained = step(model, run)
    assert contained[0].isfinite()
    assert contained[0] != sound[0]
    assert place.state.fault.tolist() == [1, 0, 0, 0]
    assert same(step(model, model), contained)


def test_seeds_that_train_in_isolation_see_the_same():
    torch._dynamo.reset()
    model = host()
    twin = copy.deepcopy(model)
    run = torch.compile(twin, fullgraph=True, backend="aot_eager")
    seen = []
    for one, forward in ((model, model), (twin, run)):
        place = place_of(one, "body.0")
        grow(place, 0, State.TRAINING, hidden=3)
        place.incubation.begin(place.arena.grafts[1], "pseudo_residual", place.seed, 1e-3)
        for _ in range(3):
            step(one, forward)
        seen.append(dict(place.incubation.named_buffers()))
    assert seen[0]["counts_1"].any()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_a_copy_of_a_model_finds_its_own_grafts():
    torch._dynamo.reset()
    model = grown_host()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        place_of(twin, "body").arena.slots.zero_()
    expected = step(twin, twin)
    assert same(expected, step(twin, torch.compile(twin, fullgraph=True, backend="aot_eager")))
    assert not same(expected, step(model, model))


@pytest.mark.parametrize(
    ("name", "layer_id", "blueprint"),
    few(
        [
            ("gpt", "*", "widen"),
            ("gpt", "blocks.*.mlp", "widen"),
            ("gpt", "blocks.*", "deepen"),
            ("cnn", "*", "widen"),
            ("bottlenecks", "*.*.body", "widen"),
        ],
        [("gpt", "blocks.*.mlp", "widen")],
    ),
)
def test_colonies_compute_the_same(name, layer_id, blueprint):
    """Also while they are frozen: what a state changes is in tensors, so torch compiles nothing again."""
    torch._dynamo.reset()
    model, place = undropped(*grown_colony(name, layer_id, blueprint))
    run = torch.compile(model, fullgraph=True, backend="aot_eager")

    def results(forward: nn.Module) -> list[torch.Tensor]:
        before = [buffer.clone() for buffer in model.buffers()]  # running statistics among them
        seen = [*passed(NETS[name].host, forward), place.arena.slots.grad.clone()]
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
        return seen

    torch.testing.assert_close(results(Running(model, run)), results(model))
    assert place.arena.slots.grad.any()
    transition_to(place, "all", State.STABILIZATION)
    with torch.compiler.set_stance("fail_on_recompile"):
        frozen = results(Running(model, run))
    torch.testing.assert_close(frozen, results(model))
    assert not frozen[-1].any()


def undropped(model: nn.Module, place: Place) -> tuple[nn.Module, Place]:
    """Without dropout: in a compiled model what new channels draw of it moves the random stream."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            module.dropout = 0.0
    return model, place


class Running(nn.Module):
    """A model that is called in another way."""

    def __init__(self, model: nn.Module, run) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *args):
        return self.run(*args)


def test_a_colony_that_is_not_finite_is_silenced():
    torch._dynamo.reset()
    model, place = undropped(*grown_colony("gpt", "*", "widen"))
    bare, _ = undropped(build(NETS["gpt"].host), place)
    expected = passed(NETS["gpt"].host, bare)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert not torch.equal(passed(NETS["gpt"].host, Running(model, run))[0], expected[0])
    with torch.no_grad():
        place.arena.slots[0] = torch.nan
    silenced = passed(NETS["gpt"].host, Running(model, run))
    assert all(torch.equal(a, b) for a, b in zip(silenced, expected, strict=False))
    assert place.state.fault.tolist() == [1]


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What the compiled forward pass of a model keeps for its backward pass, by torch's rules for a GPU."""
    kept = []

    def forward_compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        outputs = graph.graph.find_nodes(op="output")[0].args[0]
        values = [one.meta["val"] for one in outputs if isinstance(one, torch.fx.Node) and one.op != "placeholder"]
        kept.append(sum(value.nbytes for value in values if isinstance(value, Tensor)))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=forward_compiler,
        bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    with torch.autocast("cpu", torch.bfloat16):  # in which the gradient of an activation is larger than its input
        y = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(x)
    y.sum().backward()
    (size,) = kept
    return size


@pytest.mark.parametrize("waits", [True, False], ids=["", "control"])
def test_a_compiled_model_that_senses_keeps_no_more_for_its_backward_pass(monkeypatch, waits):
    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 4))

    if not waits:
        monkeypatch.setattr(Looks, "add", lambda self, x_NC, number: torch.ops.esper.look(x_NC, -1, number))
    x = torch.randn(8, 32, 16, requires_grad=True)
    bare = saved_bytes(made(), x)
    wrapped = saved_bytes(esper.wrap(made(), GrowthConfig(layers={"0": 4, "2": 4})), x)
    assert (wrapped <= 1.01 * bare) is waits, (wrapped, bare)
