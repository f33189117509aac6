"""A layer with 1,000 dormant seeds beside the bare layer: forward and backward, in bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import esper
from benchmarks.kernels.timing import graphed, in_turns, told

SIZES = {"1024 x 1024": (256, 1024, 1024), "4096 x 4096": (8192, 4096, 4096)}
"""Rows, features in and out."""

SEEDS, BLOCK, REPEATS = 1000, 64, 15


def measure() -> dict[str, Any]:
    """Microseconds a call, by size and way."""
    return {name: _measure(*size) for name, size in SIZES.items()}


def _measure(rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)
    calls = {}
    for name in ("bare", "dormant", "bare again"):
        model = nn.Sequential(nn.Linear(inputs, outputs, device="cuda", dtype=torch.bfloat16), nn.ReLU())
        if name == "dormant":
            model = esper.wrap(model, esper.GrowthConfig(layers={"0": SEEDS}))
        calls[name] = _call(model[0], x, gradient)
    found = {"eager": in_turns(calls, BLOCK, REPEATS)}
    found["CUDA graph"] = in_turns({name: graphed(call) for name, call in calls.items()}, BLOCK, REPEATS)
    return {how: {name: told(one) for name, one in times.items()} for how, times in found.items()}


def _call(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> Callable[[], None]:
    parameters = [x, *(parameter for parameter in layer.parameters() if parameter.numel())]

    def call() -> None:
        torch.autograd.grad(layer(x), parameters, gradient)

    return call
