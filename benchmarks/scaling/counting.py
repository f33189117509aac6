"""How often two ranks exchange something at a step and at a boundary, and how many bytes, by really training."""

import json
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import esper
from benchmarks.ranks.throughput import Waits
from esper.kasmina.host.anchoring import places
from esper.runtime.training.ranks import Ranks

LAYERS, STEPS = (4, 8), 10
INPUTS = torch.linspace(-1, 1, 128).view(32, 4)


def host(layers: int) -> nn.Module:
    """So many layers in a row, of four channels each."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))


def session_of(model: nn.Module) -> esper.Session:
    """A run on nothing in particular, in which nothing grows by itself."""
    return esper.Session(
        model,
        torch.optim.AdamW(model.parameters(), 1e-4),
        loss=lambda model, x: model(x).square().mean(),
        evaluate=lambda model: esper.Evaluation(losses=model(INPUTS).square().mean(1)),
        planned_steps=10_000,
        policy=Waits(),
    )


def watched(calls: Counter[str], sent: Counter[str]) -> None:
    """Count what this process exchanges from now on: ``Ranks`` is watched, and the process ends afterwards."""
    kinds = {"_meet": "meeting", "averaging": "loss", "_add": "sums", "most": "flags"}

    def watch(name: str, note: Callable[..., tuple[str, int]]) -> None:
        does = getattr(Ranks, name)

        def noted(self: Ranks, *given: Any, **further: Any) -> Any:
            what, size = note(*given)
            calls[what] += 1
            sent[what] += size
            return does(self, *given, **further)

        setattr(Ranks, name, noted)

    for name, kind in kinds.items():
        watch(
            name,
            lambda *given, kind=kind: (kind, sum(4 * one.numel() for one in given[0]) if kind == "sums" else 0),
        )
    for name in ("same", "gather"):
        watch(name, lambda value, what, name=name: (f"{name}: {what}", len(pickle.dumps(value))))


def work(rank: int, size: int, folder: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    calls, sent = Counter[str](), Counter[str]()
    watched(calls, sent)
    found: dict[str, Any] = {}
    config = esper.GrowthConfig(layers={"*": 1}, objective="none", trial="live", round_fraction=0.5)

    def counted(of: Callable[[], object]) -> dict[str, Any]:
        calls.clear()
        sent.clear()
        of()
        return {name: {"times": times, "bytes": sent[name]} for name, times in sorted(calls.items())}

    def steps() -> None:
        for _ in range(STEPS):
            session.step(INPUTS)

    for layers in LAYERS:
        model = esper.wrap(host(layers), config)
        session = session_of(DistributedDataParallel(model))
        told = {"first steps": counted(steps), "first boundary": counted(session.after_epoch)}
        told |= {f"{STEPS} steps, dormant": counted(steps), "boundary, dormant": counted(session.after_epoch)}
        name = next(iter(places(model))).layer_id
        assert session.germinate(name, "all", "low_rank", settings={"rank": 1}).accepted
        session.after_epoch()
        told |= {f"{STEPS} steps, a graft": counted(steps), "boundary, a graft": counted(session.after_epoch)}
        found[str(layers)] = told
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def measure() -> dict[str, Any]:
    """Exchanges by number of layers."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (2, folder), nprocs=2)
        counted: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return counted
