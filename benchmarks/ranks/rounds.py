"""How long a round takes where its arms run in turn, and where they run on another GPU while the run goes on:
``python -m benchmarks.ranks.rounds [--window STEPS] [--output FILE]``. On the processor with a small model.

A round lasts from the boundary at which it begins to the step after which its candidates are adopted or refused.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn

import esper
from benchmarks.machine import machine
from benchmarks.ranks.throughput import FEW, HIDDEN, HOST, SMALL, WINDOWS, loss, own_device
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation

SHARE, ROUNDS = 0.1, 2
"""Of a run's steps, the share that is a round's window; and rounds of each kind. The first is not counted."""

EPOCH = 5
"""Steps between two boundaries before a round begins."""

GOAL = 0.6


class Wants:
    """A policy that wants graft after graft, as many at once as it is told."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def decide(self, observation: Observation) -> list[Command]:
        settings = {"hidden": HIDDEN}
        return [
            Command(f"blocks.{index}.mlp", 0, State.GERMINATED, blueprint="bottleneck_mlp", settings=settings)
            for index in range(self.candidates)
        ]


def seconds(rank: int, size: int, device: torch.device, candidates: int, window: int) -> list[dict[str, Any]]:
    """Of each round, on rank 0."""
    host, windows = (HOST, WINDOWS) if device.type == "cuda" else (SMALL, FEW)
    torch.manual_seed(0)
    config = esper.GrowthConfig(
        layers=["blocks.*.mlp"],
        arms="devices" if size > 1 else "in_turn",
        choice="best",
        round_fraction=SHARE,
        max_rounds=ROUNDS,
        grow_until=1.0,
        embargo_epochs=0,
        max_growth=10.0,
        keep_looks=(1.0,),
    )
    model = esper.wrap(host().to(device), config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(1)
    held = torch.randint(host.vocabulary, (64, host.context + 1), device=device, generator=generator)

    def evaluate(model: nn.Module) -> esper.Evaluation:
        with torch.autocast(device.type, torch.bfloat16):
            parts = [
                F.cross_entropy(model(part[:, :-1]).transpose(1, 2), part[:, 1:], reduction="none")
                for part in held.split(8)
            ]
        return esper.Evaluation(losses=torch.cat(parts).float().mean(1))

    def batch() -> Tensor:
        return torch.randint(host.vocabulary, (windows, host.context + 1), device=device, generator=generator)

    session = esper.Session(
        model, optimizer, loss=loss, evaluate=evaluate, planned_steps=round(window / SHARE), policy=Wants(candidates)
    )
    found: list[dict[str, Any]] = []
    if session.serve_arms():
        return found
    while len(found) < ROUNDS:
        for _ in range(EPOCH):
            session.step(batch())
        before = len(session.events)
        session.after_epoch()
        begun = time.perf_counter()
        while not any(one["event"] == "round_ended" for one in session.events[before:]):
            session.step(batch())
        ended = next(one for one in session.events[before:] if one["event"] == "round_ended")
        arms = sum(one["event"] == "arm_ended" for one in session.events[before:])
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append({"seconds": time.perf_counter() - begun, "arms": arms, "adopted": ended["adopted"] is not None})
    session.finish()
    return found


def work(rank: int, size: int, candidates: int, window: int, store: str) -> None:
    device = own_device(rank)
    if size > 1:
        distributed.init_process_group("gloo", init_method=f"file://{store}.meet", rank=rank, world_size=size)
    found = seconds(rank, size, device, candidates, window)
    if rank == 0:
        Path(store).write_text(json.dumps(found))
    if size > 1:
        distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="a file for the figures, as JSON")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2], help="how many a round has")
    parser.add_argument("--window", type=int, default=80, help="its steps")
    asked = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rows: dict[str, Any] = {}
    for candidates in asked.candidates:
        found = {}
        for size in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                store = str(Path(folder, "told"))
                multiprocessing.spawn(work, (size, candidates, asked.window, store), nprocs=size)
                found[size] = json.loads(Path(store).read_text())[1:]
        in_turn, elsewhere = (median(one["seconds"] for one in found[size]) for size in (1, 2))
        share = elsewhere / in_turn
        rows[str(candidates)] = {"in_turn": found[1], "elsewhere": found[2], "share": share, "goal": GOAL}
        print(f"{candidates} candidates: in turn {in_turn:.1f} s, elsewhere {elsewhere:.1f} s, {share:.2f} of it")
    told = {
        "what": f"a round with a window of {asked.window} steps; one GPU, and a second one for arms",
        "machine": machine(),
        "candidates": rows,
    }
    if asked.output is not None:
        Path(asked.output).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
