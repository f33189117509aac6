"""Training steps as CUDA graphs: what grows is in them, and a graph that leaves it out is refused."""

import pytest
import torch
from torch import nn

import esper
from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.integrations.cuda_graphs import CapturedStep
from esper.kasmina.grafts import activity
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.slot_optimizer import SlotOptimizer

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTINGS = {"hidden": 4, "reads": "chunk"}


def host() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    return esper.wrap(model, esper.GrowthConfig(layers={"0": 4}))


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def batches(number: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        yield tuple(torch.randn(8, size, generator=generator).cuda() for size in (6, 3))


def grow(model, seed: int) -> None:
    place = place_named(model, "0")
    for target in (State.GERMINATED, State.TRAINING, State.GRAFTING):
        command = Command("0", seed, target, blueprint="bottleneck_mlp", settings=SETTINGS)
        transition(place, command, birth=Birth(seed + 1, ramp_steps=4))
    with torch.no_grad():
        place.arena.params_of(place.arena.grafts[seed + 1]).copy_(torch.linspace(-1, 1, 8 * 8 + 12))


def trained(step_of) -> list[torch.Tensor]:
    """Losses and parameters of 24 steps, in which two seeds get grafts, and alpha rises at every step."""
    model = host().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    SlotOptimizer([place_named(model, "0")], optimizer, lambda: 0.01, 0.0)
    step, losses = step_of(model, optimizer), []
    for number, batch in enumerate(batches(24)):
        if number in (6, 15):
            grow(model, number // 6)
        place_named(model, "0").state.alpha.fill_(number / 24)
        losses.append(step(batch))
    return [torch.stack(losses), *(one.detach() for one in model.parameters())]


def eager(model, optimizer):
    def step(batch):
        optimizer.zero_grad()
        found = loss(model, batch)
        found.backward()
        optimizer.step()
        return found.detach()

    return step


@on_gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("compiled", [lambda model: model, torch.compile], ids=["", "compiled"])
def test_a_captured_step_trains_as_an_eager_one_while_seeds_grow(monkeypatch, compiled):
    captured = []
    monkeypatch.setattr(
        CapturedStep, "_capture", lambda self, batch, of=CapturedStep._capture: captured.append(of(self, batch))
    )
    expected, found = trained(eager), trained(lambda model, optimizer: CapturedStep(compiled(model), loss, optimizer))
    assert len(captured) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@on_gpu
def test_a_graph_of_ones_own_is_refused_once_seeds_have_changed():
    model = host().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    SlotOptimizer([place_named(model, "0")], optimizer, lambda: 0.01, 0.0)
    batch, stream, graph = next(batches(1)), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        loss(model, batch).backward()
    optimizer.zero_grad()
    with torch.cuda.graph(graph, stream=stream):
        loss(model, batch).backward()
    graph.replay()
    optimizer.step()
    grow(model, 0)
    graph.replay()
    with pytest.raises(ConfigError, match="changed since the CUDA graph was captured"):
        optimizer.step()
    loss(model, batch).backward()  # eagerly, all is well
    optimizer.step()


@on_gpu
def test_an_optimizers_step_is_not_captured():
    model = host().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, capturable=True)
    SlotOptimizer([place_named(model, "0")], optimizer, lambda: 0.01, 0.0)
    with torch.cuda.stream(torch.cuda.Stream()):
        loss(model, next(batches(1))).backward()
        optimizer.step()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones(1, device="cuda")  # torch warns of a graph that is empty
        with pytest.raises(ConfigError, match=r"optimizer\.step is being captured"):
            optimizer.step()


@on_gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # torch's own, which keeps a pool alive
def test_a_compiler_that_replays_trains_what_grows():
    def replaying(model, optimizer):
        compiled = torch.compile(model, mode="reduce-overhead")

        def step(batch):
            torch.compiler.cudagraph_mark_step_begin()
            return eager(lambda x: compiled(x), optimizer)(batch).clone()

        return step

    expected, found = trained(eager), trained(replaying)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_a_graph_leaves_out_is_noticed_wherever_it_is_captured(monkeypatch):
    """The same without a GPU: a pass is taken for captured, and what follows for replays."""
    model, batch = host(), (torch.ones(8, 6), torch.ones(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    SlotOptimizer([place_named(model, "0")], optimizer, lambda: 0.01, 0.0)
    with monkeypatch.context() as captured:
        captured.setattr(activity, "is_capturing", lambda: True)
        loss(model, batch).backward()
    optimizer.step()  # nothing has changed yet
    grow(model, 0)
    with torch.no_grad():
        model(batch[0])  # a look at it is no training pass
    with pytest.raises(ConfigError, match="changed since the CUDA graph was captured"):
        optimizer.step()
    loss(model, batch).backward()
    optimizer.step()


def test_it_needs_a_wrapped_model_on_a_gpu():
    model = host()
    with pytest.raises(ConfigError, match="needs a GPU, and the model is on cpu"):
        CapturedStep(model, loss, torch.optim.SGD(model.parameters(), 0.1))
    bare = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r"call esper\.wrap first"):
        CapturedStep(bare, loss, torch.optim.SGD(bare.parameters(), 0.1))
