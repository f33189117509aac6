"""What dormant seeds cost by how many they are."""

import torch
from torch import nn

from esper.contracts.config import GrowthConfig
from esper.evaluation.bench.clock import graphed, in_turns
from esper.evaluation.bench.dormant import both_passes, one_thread
from esper.evaluation.bench.section import AGAIN, BARE, Beside, Goal, Section
from esper.kasmina.host.wrapping import wrap

NUMBERS, QUICK_NUMBERS = (100, 1_000, 10_000, 100_000), (100, 1_000)
INPUTS, ROWS = 64, 64
MOST_GROWTH = 1.2


def measure(device: torch.device, is_quick: bool) -> Section:
    """Forward and backward of a layer as wide as the most seeds."""
    numbers = QUICK_NUMBERS if is_quick else NUMBERS
    is_gpu, channels, rows, points = device.type == "cuda", numbers[-1], [], []
    torch.manual_seed(0)
    x = torch.randn(ROWS, INPUTS, device=device, requires_grad=True)
    for seeds in numbers:
        calls = {}
        for name in (BARE, "dormant", AGAIN):
            model = nn.Sequential(nn.Linear(INPUTS, channels)).to(device)
            if name == "dormant":
                wrap(model, GrowthConfig(layers={"0": seeds}))
            call = both_passes(model, x)
            calls[name] = graphed(call) if is_gpu else call
        with one_thread():
            found = Beside.of(in_turns(calls, device, 64 if is_gpu else 16, 5 if is_quick else 15), "dormant")
        rows.append({"seeds": f"{seeds:,}"} | found.cells())
        points.append((float(seeds), found.added))
    least, most = (choose(one.middle for _, one in points) for choose in (min, max))
    asked = f"added time differs by at most {MOST_GROWTH - 1:.0%}"
    flat = Goal(asked, f"{least:+.1f} to {most:+.1f} us", most <= MOST_GROWTH * least)
    return Section(
        f"Dormant seeds of a layer of {channels:,} channels, {ROWS} rows", rows, [flat], {"added, us": points}
    )
