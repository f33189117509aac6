"""Live grafts over sizes, dtypes and families."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from esper.evaluation.bench.clock import Spread, graphed, in_turns
from esper.evaluation.bench.grafts import call_of, passes
from esper.evaluation.bench.planted import Planting, grow, planted
from esper.evaluation.bench.section import Section, as_time

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "affine": {"reads": "chunk"},
    "low_rank": {"rank": 8, "reads": "chunk"},
    "bottleneck_mlp": {"hidden": 16, "reads": "chunk"},
    "glu": {"hidden": 16, "reads": "chunk"},
}
ROWS, CHANNELS, WIDTHS = (32, 512, 8192), (256, 2048, 8192), (4, 32, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
USUAL = (8192, 4096, 32, torch.bfloat16)
SMALL = (64, 256, 32, torch.float32)


def measure(device: torch.device, is_quick: bool) -> Section:
    """One thing is changed at a time; every second seed has a graft."""
    is_gpu = device.type == "cuda"
    rows, channels, width, dtype = USUAL if is_gpu else SMALL
    cases = [(family, rows, channels, width, dtype) for family in FAMILIES]
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
    planting = Planting(channels, channels // width, channels // width // 2, family, FAMILIES[family])
    place = planted(planting, device, dtype)
    y = torch.randn(rows, channels, device=device, dtype=dtype)
    into = torch.empty_like(y)
    calls = {"ours": call_of(partial(grow, place), place, y, both=True), "copy": lambda: into.copy_(y)}
    if device.type == "cuda":
        calls = {name: graphed(call) for name, call in calls.items()}
    times = in_turns(calls, device, 10, repeats)
    ours, copy = (Spread.of(times[name]).middle for name in ("ours", "copy"))
    floor = copy * passes(planting, both=True) / 2
    return {
        "family": family,
        "rows": f"{rows:,}",
        "channels": f"{channels:,}",
        "of one graft": str(width),
        "dtype": str(dtype).removeprefix("torch."),
        "floor": as_time(floor),
        "ours": as_time(ours),
        "times the floor": f"{ours / floor:.2f}",
    }
