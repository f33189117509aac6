"""One rank that measures steps of the bare model, of the same with seeds that sleep, and of the same while grafts are
blended in on trial; they take steps in turns, a few each."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import esper
from benchmarks.machine import machine
from esper.contracts.reports import Observation
from esper.kasmina.host.anchoring import places
from esper.tasks.gpt import GPTHost

HOST, WINDOWS = GPTHost(50257, 1024, 768, 3072, 12, 12), 16
SMALL, FEW = GPTHost(256, 64, 64, 256, 2, 2), 8
SEEDS, GRAFTS, HIDDEN = 64, 2, 64
STEPS, TURNS = 5, 12
"""Of each in a turn, and turns; the first two are not counted."""

GOALS = {"dormant": 0.98, "growing": 0.95}


class Waits:
    """A policy that never wants anything."""

    def decide(self, observation: Observation) -> list[object]:
        return []


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.autocast(tokens.device.type, torch.bfloat16):
        scores = model(tokens[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def parallel(model: nn.Module, *, shards: bool) -> nn.Module:
    """On all ranks: a copy on each, or a part of every parameter."""
    if not shards:
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def bare(host: GPTHost, device: torch.device, tokens: Tensor, *, shards: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    model = parallel(host().to(device), shards=shards)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")

    def step() -> None:
        loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def wrapped(host: GPTHost, device: torch.device, tokens: Tensor, *, grows: bool, shards: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    config = esper.GrowthConfig(layers={"blocks.*.mlp.*": SEEDS}, objective="none", trial="live", round_fraction=0.5)
    model = esper.wrap(host().to(device), config)
    called = parallel(model, shards=shards)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")
    held = torch.randint(host.vocabulary, (16, 65), device=device, generator=torch.Generator(device).manual_seed(1))

    def evaluate(model: nn.Module) -> esper.Evaluation:
        scores = model(held[:, :-1]).float()
        losses = F.cross_entropy(scores.transpose(1, 2), held[:, 1:], reduction="none").mean(1)
        return esper.Evaluation(losses=losses)

    session = esper.Session(called, optimizer, loss=loss, evaluate=evaluate, planned_steps=10_000, policy=Waits())
    if grows:
        for _ in range(2):
            session.step(tokens)
        session.after_epoch()
        named = [place.layer_id for place in places(model)][:GRAFTS]
        for name in named:
            answer = session.germinate(name, "all", "bottleneck_mlp", settings={"hidden": HIDDEN})
            assert answer.accepted, answer
        session.after_epoch()
    return lambda: session.step(tokens)


def own_device(rank: int) -> torch.device:
    """A GPU for each rank, or for all the processor, of which each has one thread."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def work(rank: int, size: int, store: str, output: str | None, shards: bool) -> None:
    device = own_device(rank)
    is_on_gpus = device.type == "cuda"
    backend = "nccl" if is_on_gpus else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size)
    host, windows = (HOST, WINDOWS) if is_on_gpus else (SMALL, FEW)
    generator = torch.Generator(device).manual_seed(rank)
    tokens = torch.randint(host.vocabulary, (windows, host.context + 1), device=device, generator=generator)
    steps = {
        "bare": bare(host, device, tokens, shards=shards),
        "dormant": wrapped(host, device, tokens, grows=False, shards=shards),
        "growing": wrapped(host, device, tokens, grows=True, shards=shards),
        "bare again": bare(host, device, tokens, shards=shards),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            distributed.barrier()
            begun = time.perf_counter()
            for _ in range(STEPS):
                step()
            if is_on_gpus:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begun) / STEPS)
    if rank == 0:
        tell(seconds, host, windows, size, output, shards=shards)
    distributed.destroy_process_group()


def tell(
    seconds: dict[str, list[float]], host: GPTHost, windows: int, size: int, output: str | None, *, shards: bool
) -> None:
    counted = {name: times[2:] for name, times in seconds.items()}
    shares = {
        name: [bare / other for bare, other in zip(counted["bare"], times, strict=True)]
        for name, times in counted.items()
        if name != "bare"
    }
    rows = {
        name: {"throughput": median(of), "least": min(of), "most": max(of), "goal": GOALS.get(name)}
        for name, of in shares.items()
    }
    for name, row in rows.items():
        print(f"{name}: {row['throughput']:.1%} of bare ({row['least']:.1%} to {row['most']:.1%})")
    how = " (fully_shard)" if shards else ""
    size_told = f"{size} ranks{how}, GPT of {host.width} x {host.blocks}, {windows} windows of {host.context} on each"
    told = {
        "what": f"{size_told}; {SEEDS} seeds in every layer of its perceptrons; growing: {GRAFTS} grafts on trial",
        "machine": machine(),
        "bare_milliseconds": median(counted["bare"]) * 1e3,
        "throughput": rows,
    }
    if output is not None:
        Path(output).write_text(json.dumps(told, indent=2) + "\n")
