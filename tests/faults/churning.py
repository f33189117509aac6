"""A process for ``test_churn``: lets as many lifecycles come and go as it is told, and prints by how many bytes it has
grown, and whether it has as many files and threads as before. Then the same of as many as it is told secondly, of each
of which it keeps five kilobytes."""

import gc
import json
import os
import sys
import threading
from pathlib import Path

import torch
from torch import nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import SlotOptimizer

PATH = (State.GERMINATED, State.TRAINING, State.GRAFTING, State.CULLED, State.DORMANT)
BLUEPRINTS = {"bottleneck_mlp": {"hidden": 4, "reads": "chunk"}, "affine": {}, "glu": {"hidden": 4, "reads": "chunk"}}


def bytes_in_use() -> int:
    """Of this process, in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> tuple[int, int]:
    """Open files and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def live(place: Place, seed: int, lifecycle: int, kind: str) -> None:
    """One seed goes through a whole lifecycle, and is dormant again."""
    for target in PATH:
        command = Command(place.layer_id, seed, target, blueprint=kind, settings=BLUEPRINTS[kind])
        transition(place, command, birth=Birth(lifecycle, ramp_steps=4))
        if target is State.CULLED:
            place.arena.remove(lifecycle)


def churned(lifecycles: int, kept: list[bytearray] | None = None) -> tuple[int, bool]:
    """By how many bytes the process has grown, and whether it has as many files and threads as before.

    Args:
        lifecycles: how many.
        kept: takes five kilobytes for each of them.
    """
    model = esper.wrap(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), esper.GrowthConfig(layers={"0": 4})
    )
    place, optimizer = place_named(model, "0"), torch.optim.AdamW(model.parameters())
    SlotOptimizer([place], optimizer, lambda: 0.01, 0.0)
    x, number = torch.randn(8, 6), 0

    def churn(many: int, kept: list[bytearray] | None = None) -> None:
        nonlocal number
        for _ in range(many):
            number += 1
            live(place, number % 4, number, sorted(BLUEPRINTS)[number % 3])
            if kept is not None:
                kept.append(bytearray(5_000))
            if number % 10 == 0:
                model(x).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    churn(max(300, lifecycles // 10))  # caches of torch and of Python fill
    before, then = bytes_in_use(), handles()
    churn(lifecycles, kept)
    return bytes_in_use() - before, handles() == then


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([churned(int(sys.argv[1])), churned(int(sys.argv[2]), [])]))
