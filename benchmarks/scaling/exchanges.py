"""What ranks exchange on the host: how long it takes among processes of this machine, and what each of them sends.

Time on one machine says little about many: the processes share its cores. What a rank writes to its sockets does not
depend on that, so both are kept, and :mod:`benchmarks.scaling.laws` finds out how they grow.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, multiprocessing

from esper.runtime.training.ranks import Ranks

SIZES = (2, 4, 8, 16)
REPEATS = 50
PAYLOAD = bytes(1000)


def exchanges(ranks: Ranks) -> dict[str, Callable[[], Any]]:
    """Each of them, by its name."""
    equal, mine = {"weight": 1}, PAYLOAD
    return {
        "wait": lambda: ranks.wait("a point"),
        "check_equal": lambda: ranks.check_equal(equal, "values"),
        "same, 1 KB": lambda: ranks.same(mine, "a value"),
        "gather, 1 KB": lambda: ranks.gather(mine, "values"),
    }


def work(rank: int, size: int, folder: str, repeats: int) -> None:
    """One rank: writes what it has found to a file of the folder."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    distributed.barrier()
    before = _sockets()
    ranks = Ranks(timeout=600.0)
    ranks.wait("the start")
    found: dict[str, Any] = {"sockets": _sockets() - before, "exchanges": {}}
    for name, exchange in exchanges(ranks).items():
        for _ in range(10):
            exchange()
        writes, sent = _written()
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            exchange()
            seconds.append(time.perf_counter() - begun)
        writes_after, sent_after = _written()
        found["exchanges"][name] = {
            "microseconds": 1e6 * median(seconds),
            "least": 1e6 * min(seconds),
            "writes": (writes_after - writes) / repeats,
            "bytes": (sent_after - sent) / repeats,
        }
    ranks.wait("the end")
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def measure(sizes: tuple[int, ...] = SIZES, repeats: int = REPEATS) -> dict[str, Any]:
    """Every exchange among so many processes; of each figure the largest of all ranks."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    found = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.start_processes(work, (size, folder, repeats), nprocs=size, start_method="fork")
            every = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]
        found[str(size)] = {
            "sockets": max(one["sockets"] for one in every),
            "exchanges": {
                name: {
                    what: round(max(one["exchanges"][name][what] for one in every), 1)
                    for what in ("microseconds", "least", "writes", "bytes")
                }
                for name in every[0]["exchanges"]
            },
        }
    return found


def _written() -> tuple[int, int]:
    """Writes to sockets and files that this process has made, and their bytes; this module writes to no file."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["syscw"]), int(lines["wchar"])


def _sockets() -> int:
    return len(os.listdir("/proc/self/fd"))
