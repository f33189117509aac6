"""Live grafts over sizes, dtypes and families."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from esper.evaluation.bench.clock import Call, Spread, graphed, in_turns
from esper.evaluation.bench.grafts import HOST, added, call_of, passes
from esper.evaluation.bench.planted import Planting, grow, planted
from esper.evaluation.bench.section import Section, as_time, dtype_name
from esper.kasmina.kernels.choice import VARIABLE

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "affine": {"reads": "chunk"},
    "low_rank": {"rank": 8, "reads": "chunk"},
    "bottleneck_mlp": {"hidden": 16, "reads": "chunk"},
    "glu": {"hidden": 16, "reads": "chunk"},
}
READING: Mapping[str, Mapping[str, Any]] = {
    f"{name} of the input": {**settings, "reads": "input"} for name, settings in FAMILIES.items() if len(settings) > 1
}
"""Families that read the place's input."""

INPUTS = 1024
ROWS, CHANNELS, WIDTHS = (32, 512, 8192), (256, 2048, 8192), (4, 32, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
USUAL = (8192, 4096, 32, torch.bfloat16)
SMALL = (64, 256, 32, torch.float32)


def measure(device: torch.device, is_quick: bool) -> Section:
    """One thing is changed at a time; every second seed has a graft."""
    is_gpu = device.type == "cuda"
    rows, channels, width, dtype = USUAL if is_gpu else SMALL
    cases = [(family, rows, channels, width, dtype) for family in (*FAMILIES, *READING)]
    if not is_quick:
        cases += [("bottleneck_mlp", more, channels, width, dtype) for more in ROWS]
        cases += [("bottleneck_mlp", rows, more, width, dtype) for more in CHANNELS]
        cases += [("bottleneck_mlp", rows, channels, one, dtype) for one in WIDTHS if one != width]
        cases += [("bottleneck_mlp", rows, channels, width, one) for one in DTYPES if is_gpu and one is not dtype]
    told = [_row(device, *case, repeats=3 if is_quick else 7) for case in cases]
    return Section("Live grafts by family, size and dtype: forward and backward, every second seed with a graft", told)


def _row(
    device: torch.device, family: str, rows: int, channels: int, width: int, dtype: torch.dtype, *, repeats: int
) -> dict[str, str]:
    settings = {**FAMILIES, **READING}[family]
    active, inputs = channels // width // 2, INPUTS if family in READING else 8
    planting = Planting(channels, channels // width, active, family.split()[0], settings, inputs)
    place = planted(planting, device, dtype)
    y, x = (torch.randn(rows, features, device=device, dtype=dtype) for features in (channels, inputs))
    into = torch.empty_like(y)
    host, ours = (call_of(way, place, y, both=True) for way in (lambda y: y, partial(grow, place, x=x)))
    calls = {HOST: host, "ours": ours, "twin": _by_twin(ours), "copy": lambda: into.copy_(y)}
    if device.type == "cuda":
        calls = {name: graphed(call) for name, call in calls.items()}
    found = in_turns(calls, device, 10, repeats)
    copies = Spread.of(found.pop("copy")).middle
    times = {name: spread.middle for name, spread in added(found).items()}
    floor = None if family in READING else copies * passes(planting, both=True) / 2
    return {
        "family": family,
        "rows": f"{rows:,}",
        "channels": f"{channels:,}",
        "of one graft": str(width),
        "dtype": dtype_name(dtype),
        "ours": as_time(times["ours"]),
        "plain PyTorch": f"{as_time(times['twin'])}, {times['twin'] / times['ours']:.1f} x",
        "times the floor": "-" if floor is None else f"{times['ours'] / floor:.2f}",
    }


def _by_twin(call: Call) -> Call:
    """The same without kernels."""

    def run() -> None:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "reference"
        try:
            call()
        finally:
            del os.environ[VARIABLE]
            if before is not None:
                os.environ[VARIABLE] = before

    return run
