"""A training step of a transformer the size of GPT-2 small, plain and with 64 dormant seeds in every MLP layer."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import esper
from benchmarks.kernels.timing import in_turns, told
from esper.tasks.gpt import GPTHost

HOST = GPTHost(50257, 1024, 768, 3072, 12, 12)
WINDOWS, SEEDS, BLOCK, REPEATS = 16, 64, 8, 9


def measure() -> dict[str, Any]:
    """Microseconds and gigabytes of a step, by way and model."""
    found = {}
    for how in ("eager", "compiled"):
        found[how] = _measure(is_compiled=how == "compiled")
        print(how, found[how], flush=True)
    return found


def _measure(*, is_compiled: bool) -> dict[str, Any]:
    steps, memory = {}, {}
    for name in ("plain", "dormant", "plain again"):
        steps[name] = _step(name == "dormant", is_compiled=is_compiled)
        steps[name]()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            steps[name]()
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
    times = in_turns(steps, BLOCK, REPEATS)
    return {name: told(times[name]) | {"gigabytes": round(memory[name], 3)} for name in steps}


def _step(is_wrapped: bool, *, is_compiled: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model = HOST().cuda()
    if is_wrapped:
        esper.wrap(model, esper.GrowthConfig(layers={"blocks.*.mlp.*": SEEDS}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens = torch.randint(HOST.vocabulary, (WINDOWS, HOST.context + 1), device="cuda")
    forward: Any = torch.compile(model, fullgraph=True) if is_compiled else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            scores = forward(tokens[:, :-1])
            loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return partial(step)
