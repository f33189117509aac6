"""A layer with dormant seeds beside the bare one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.contracts.config import GrowthConfig
from esper.evaluation.bench.clock import Call, graphed, in_turns
from esper.evaluation.bench.section import AGAIN, BARE, Beside, Goal, Section, dtype_name
from esper.kasmina.host.wrapping import wrap

SEEDS = 1000
MOST_SHARE, MOST_US_EAGER, MOST_US_GRAPHED = 0.03, 40.0, 5.0
MOST_STATE = 100_000
BLOCK = 64  # calls of one repeat: one pass in eight is looked at


class Size(NamedTuple):
    """Rows that a Linear layer reads, its features, how it counts."""

    rows: int
    features: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.features} x {self.features}, {self.rows} rows, {dtype_name(self.dtype)}"


CPU = (Size(256, 1024),)
GPU = (Size(256, 1024, torch.bfloat16), Size(8192, 4096, torch.bfloat16))


def measure(device: torch.device, is_quick: bool) -> Section:
    """A layer with 1,000 dormant seeds, beside the bare layer."""
    is_gpu = device.type == "cuda"
    repeats = 8 if is_quick else 30
    rows, goals = [], []
    for size in GPU if is_gpu else CPU:
        layers = _layers(size, device)
        if size == (GPU if is_gpu else CPU)[0]:
            state = sum(buffer.nbytes for buffer in layers["dormant"].buffers())
            goals.append(Goal(f"state below {MOST_STATE // 1000} KB", f"{state / 1000:.1f} KB", state < MOST_STATE))
        for what, make in {"forward": _forward, "forward and backward": both_passes}.items():
            x = torch.randn(size.rows, size.features, device=device, dtype=size.dtype, requires_grad=is_gpu)
            calls = {name: make(layer, x) for name, layer in layers.items()}
            for how in ("eager", "CUDA graph") if is_gpu else ("one thread",):
                with one_thread():
                    timed = {name: graphed(call) for name, call in calls.items()} if how == "CUDA graph" else calls
                    found = Beside.of(in_turns(timed, device, BLOCK, repeats), "dormant")
                rows.append({"Linear": str(size), "pass": what, "how": how} | found.cells())
                goals.append(_goal(size, what, how, found, is_gpu=is_gpu))
    return Section(f"A layer with {SEEDS:,} dormant seeds", rows, goals)


def _goal(size: Size, what: str, how: str, found: Beside, *, is_gpu: bool) -> Goal:
    place = f"{size}, {what}, {how}"
    if not is_gpu:
        return Goal(
            f"{place}: at most {MOST_SHARE:.0%} more time",
            f"{found.share.middle:+.1%}",
            found.share.middle <= MOST_SHARE,
        )
    most = MOST_US_GRAPHED if how == "CUDA graph" else MOST_US_EAGER
    return Goal(f"{place}: at most {most:g} us more", f"{found.added.middle:+.1f} us", found.added.middle <= most)


def _layers(size: Size, device: torch.device) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {}
    for name in (BARE, "dormant", AGAIN):
        model = nn.Sequential(nn.Linear(size.features, size.features), nn.ReLU()).to(device, size.dtype)
        if name == "dormant":
            wrap(model, GrowthConfig(layers={"0": SEEDS}))
        made[name] = model.get_submodule("0")
    return made


def _forward(layer: nn.Module, x: Tensor) -> Call:
    return lambda: layer(x)


def both_passes(layer: nn.Module, x: Tensor) -> Call:
    """Forward and backward."""
    gradient = torch.randn_like(layer(x))
    learned = [one for one in (x, *layer.parameters()) if one.requires_grad and one.numel()]
    return lambda: torch.autograd.grad(layer(x), learned, gradient)


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch's, inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
