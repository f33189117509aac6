"""``python -m benchmarks.checkpoints``: what it takes to write a checkpoint, to look whether it is whole, and for how
long a run waits for one that is written in the background. A file of the same size is written and flushed beside it."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import machine
from esper.checkpoint import store
from esper.checkpoint.digests import file_digest
from esper.checkpoint.manifest import TENSORS as TENSORS_FILE

RESULTS = Path(__file__).parent.parent / "results" / "checkpoints"
TENSORS = 64


def seconds(work: Callable[[], Any]) -> float:
    """That something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measured(gigabytes: float, repeats: int, folder: Path) -> dict[str, Any]:
    """Medians for a state of a size.

    Args:
        gigabytes: of its tensors.
        repeats: measurements of each.
        folder: on the disk that is to be measured.
    """
    state = {str(index): torch.randn(int(gigabytes * 1e9 / TENSORS / 4)) for index in range(TENSORS)}
    plain = folder / "plain"

    def write_plainly() -> None:
        with plain.open("wb") as file:
            for tensor in state.values():
                file.write(tensor.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    ways = {
        "plain_write": write_plainly,
        "write": lambda: store.write(folder / "checkpoints", state),
        "stall_in_background": lambda: store.Prepared.of(state).held(),
        "verification": lambda: file_digest(max((folder / "checkpoints").iterdir()) / TENSORS_FILE),
        "verified_read": lambda: store.read(folder / "checkpoints"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            times[name].append(seconds(work))
    per_gigabyte = {name: round(median(of) / gigabytes, 3) for name, of in times.items()}
    spread = {name: [round(min(of) / gigabytes, 3), round(max(of) / gigabytes, 3)] for name, of in times.items()}
    return {"gigabytes": gigabytes, "repeats": repeats, "seconds_per_gigabyte": per_gigabyte, "least_and_most": spread}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on which disk; by default the system's for temporary files")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sizes = [measured(one, options.repeats, Path(folder)) for one in options.gigabytes]
    told = {"machine": machine(), "sizes": sizes}
    print(json.dumps(told, indent=1))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
