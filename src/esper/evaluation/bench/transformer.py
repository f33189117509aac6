"""A training step of a transformer the size of GPT-2 small, every layer of its perceptrons with 64 seeds."""

import gc
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from esper.contracts.config import GrowthConfig
from esper.evaluation.bench.clock import Call, in_turns
from esper.evaluation.bench.planted import plant
from esper.evaluation.bench.section import AGAIN, BARE, Beside, Goal, Section
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import wrap
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from esper.tasks.gpt import GPTHost

HOST, WINDOWS = GPTHost(50257, 1024, 768, 3072, 12, 12), 16
SMALL, FEW = GPTHost(256, 64, 64, 256, 2, 2), 8
SEEDS, SETTINGS = 64, {"hidden": 16, "reads": "chunk"}
MOST_TIME, MOST_MEMORY, LEAST_BUSY = 0.005, 0.01, 0.8


ACTIVE = (0, 1, 6, 64)
"""Seeds of each layer with grafts: none, 1 in 64, a tenth, all."""


class Way(NamedTuple):
    """How a step is made.

    Args:
        name: in the table.
        is_compiled: whether torch compiles the model.
        is_graphed: whether the forward and the backward pass are replayed from a CUDA graph.
    """

    name: str
    is_compiled: bool = False
    is_graphed: bool = False


EAGER, COMPILED = Way("eager"), Way("compiled", is_compiled=True)
GRAPHED = Way("CUDA graph", is_graphed=True)
COMPILED_GRAPHED = Way("compiled, CUDA graph", is_compiled=True, is_graphed=True)


def measure(way: Way, device: torch.device, is_quick: bool) -> Section | None:
    """A step of GPT-2 small with dormant seeds and with grafts; on a GPU."""
    if device.type != "cuda":
        return None
    host, windows = (SMALL, FEW) if is_quick else (HOST, WINDOWS)
    _step(SMALL, FEW, device, EAGER, None)()  # from then on torch holds what it keeps for any model
    rows: list[dict[str, str]] = []
    goals: list[Goal] = []
    steps, gigabytes = {}, {}
    for name, active in {BARE: None, **{str(number): number for number in ACTIVE}}.items():
        before = _held()
        steps[name] = _step(host, windows, device, way, active)
        gigabytes[name] = _peak(steps[name], before if way.is_graphed else None)
    steps[AGAIN] = steps[BARE]
    times = in_turns(steps, device, 4 if is_quick else 8, 4 if is_quick else 6)
    for active in ACTIVE:
        found = Beside.of(times, str(active))
        more = gigabytes[str(active)] / gigabytes[BARE] - 1
        busy = _busy(steps[str(active)])
        cells = {"step": way.name, "seeds with grafts": f"{active} of {SEEDS}"} | found.cells()
        rows.append(cells | {"more memory": f"{more:+.1%}", "GPU at work": f"{busy:.0%}"})
        goals += _goals(way.name, active, found, more, busy)
    size = f"{host.width} x {host.blocks} on {windows} windows of {host.context}, bf16"
    return Section(f"A training step of {size}: {way.name}", rows, goals)


def _goals(how: str, active: int, found: Beside, more: float, busy: float) -> Iterable[Goal]:
    if active:
        yield Goal(
            f"{how}, {active} of {SEEDS}: GPU at work at least {LEAST_BUSY:.0%}", f"{busy:.0%}", busy >= LEAST_BUSY
        )
    else:
        share = found.share.middle
        yield Goal(f"{how}, dormant: at most {MOST_TIME:.1%} more time", f"{share:+.2%}", share <= MOST_TIME)
        yield Goal(f"{how}, dormant: at most {MOST_MEMORY:.0%} more memory", f"{more:+.2%}", more <= MOST_MEMORY)


def _step(host: GPTHost, windows: int, device: torch.device, way: Way, active: int | None) -> Call:
    """A step of the bare model, if no number of seeds with grafts is given."""
    torch.manual_seed(0)
    model = host().to(device)
    if active is not None:
        wrap(model, GrowthConfig(layers={"blocks.*.mlp.*": SEEDS}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    if active:
        for place in places(model):
            plant(place, [index * SEEDS // active for index in range(active)], "bottleneck_mlp", SETTINGS)
        SlotOptimizer(places(model), optimizer, lambda: 1e-3, 0.01)
    tokens = torch.randint(host.vocabulary, (windows, host.context + 1), device=device)
    forward: Any = torch.compile(model, fullgraph=True) if way.is_compiled else model

    def differentiate() -> None:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=not way.is_graphed):
            scores = forward(tokens[:, :-1])
            loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()

    if way.is_graphed:
        return _replayed(model, optimizer, differentiate)

    def step() -> None:
        differentiate()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _replayed(model: nn.Module, optimizer: torch.optim.Optimizer, differentiate: Call) -> Call:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        differentiate()
        optimizer.zero_grad()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        differentiate()
    grads: list[tuple[Tensor, Tensor | None]] = [(one, one.grad) for one in model.parameters()]

    def step(_: Call = differentiate) -> None:  # it has the batch that the graph reads
        graph.replay()
        for parameter, grad in grads:
            parameter.grad = grad
        optimizer.step()

    return step


def _held() -> int:
    """Bytes of the device that torch holds, but for what is free."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def _peak(step: Call, before: int | None) -> float:
    """Gigabytes that a step takes beyond what is there before it.

    Args:
        step: what takes them.
        before: what was held before the step was built, of a graph, which holds what it needs from then on: all that
            is there since counts, the model's parameters too.
    """
    step()
    if before is not None:
        return (_held() - before) / 1e9
    _held()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - allocated) / 1e9


def _busy(step: Call) -> float:
    """Share of the time in which the GPU is at work, over some steps."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start.record()
        for _ in range(3):
            step()
        end.record()
        end.synchronize()
    at_work = sum(event.self_device_time_total for event in profiled.key_averages())
    return float(min(1.0, at_work / 1e3 / start.elapsed_time(end)))
