"""A training step of a transformer the size of GPT-2 small, every layer of its perceptrons with 64 dormant seeds."""

import gc
from typing import Any

import torch
import torch.nn.functional as F

from esper.contracts.config import GrowthConfig
from esper.evaluation.bench.clock import Call, in_turns
from esper.evaluation.bench.section import AGAIN, BARE, Beside, Goal, Section
from esper.kasmina.host.wrapping import wrap
from esper.tasks.gpt import GPTHost

HOST, WINDOWS = GPTHost(50257, 1024, 768, 3072, 12, 12), 16
SMALL, FEW = GPTHost(256, 64, 64, 256, 2, 2), 8
SEEDS = 64
MOST_TIME, MOST_MEMORY = 0.005, 0.01


def measure(device: torch.device, is_quick: bool) -> Section | None:
    """A step of GPT-2 small with dormant seeds, eager and compiled; on a GPU."""
    if device.type != "cuda":
        return None
    host, windows = (SMALL, FEW) if is_quick else (HOST, WINDOWS)
    rows, goals = [], []
    for how in ("eager", "compiled"):
        steps, gigabytes = {}, {}
        for name in (BARE, "dormant", AGAIN):
            steps[name] = _step(host, windows, device, is_wrapped=name == "dormant", is_compiled=how == "compiled")
            gigabytes[name] = _peak(steps[name])
        found = Beside.of(in_turns(steps, device, 8, 6 if is_quick else 15), "dormant")
        more = gigabytes["dormant"] / gigabytes[BARE] - 1
        memory = {"memory": f"{gigabytes[BARE]:.2f} GB", "more memory": f"{more:+.1%}"}
        rows.append({"step": how} | found.cells() | memory)
        share = found.share.middle
        goals.append(Goal(f"{how}: at most {MOST_TIME:.1%} more time", f"{share:+.2%}", share <= MOST_TIME))
        goals.append(Goal(f"{how}: at most {MOST_MEMORY:.0%} more memory", f"{more:+.2%}", more <= MOST_MEMORY))
    title = f"A training step of {host.width} x {host.blocks} on {windows} windows of {host.context}, bf16"
    return Section(title, rows, goals)


def _step(host: GPTHost, windows: int, device: torch.device, *, is_wrapped: bool, is_compiled: bool) -> Call:
    torch.manual_seed(0)
    model = host().to(device)
    if is_wrapped:
        wrap(model, GrowthConfig(layers={"blocks.*.mlp.*": SEEDS}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens = torch.randint(host.vocabulary, (windows, host.context + 1), device=device)
    forward: Any = torch.compile(model, fullgraph=True) if is_compiled else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            scores = forward(tokens[:, :-1])
            loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _peak(step: Call) -> float:
    """Gigabytes that a step takes beyond what is there before it."""
    step()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e9
