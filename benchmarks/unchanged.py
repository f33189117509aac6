"""Whether another checkout grows the same networks, to the byte: ``python -m benchmarks.unchanged PATH``.

Grows digits and MNIST-1D as ``esper run`` does, three seeds each, by this checkout and by the one at PATH, on this
machine with one thread, and compares digests of all exported weights and the training FLOPs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import esper
from esper.cli.options import PACES
from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.tasks.catalogue import load_task

CELLS = tuple((data, seed) for data in ("digits", "mnist1d") for seed in (0, 1, 2))


def grow(data: str, seed: int) -> dict[str, Any]:
    """One grown run as shipped: what it ended with."""
    task = load_task(data, seed, "mlp")
    run = growing(
        task,
        GrowthConfig(seed=seed),
        **PACES["mlp"]._asdict(),
        seed=seed,
    )
    run.finish()
    weights = esper.export(run.model).state_dict().values()  # by their bytes alone: an export may name them otherwise
    bytes_of_each = (tensor.detach().contiguous().numpy().tobytes() for tensor in weights)
    digest = hashlib.sha256("".join(sorted(hashlib.sha256(each).hexdigest() for each in bytes_of_each)).encode())
    return {
        "data": data,
        "seed": seed,
        "weights": digest.hexdigest()[:16],
        "train_flops": run.session.train_flops,
        "outcomes": [report.outcome for report in run.session.field_reports],
    }


def grown_by(checkout: Path, data: str, seed: int) -> dict[str, Any]:
    """The same by the sources of a checkout, in a process of its own."""
    work = [sys.executable, str(Path(__file__).resolve()), "--grow", data, "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(work, env=environment, cwd=checkout, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Compare; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("--grow", choices=sorted({data for data, _ in CELLS}))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.grow is not None:
        torch.set_num_threads(1)
        print(json.dumps(grow(options.grow, options.seed)))
        return 0
    if options.checkout is None:
        parser.error("name the checkout to compare with")
    here, differing = Path(__file__).resolve().parents[1], 0
    for data, seed in CELLS:
        ours, theirs = grown_by(here, data, seed), grown_by(options.checkout, data, seed)
        same = ours == theirs
        differing += not same
        print(f"{data} {seed}: {'the same' if same else 'DIFFERENT'} {ours['weights']} {ours['train_flops']:,} FLOPs")
        if not same:
            print(f"  there: {theirs}\n  here:  {ours}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
