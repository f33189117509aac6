"""``python -m benchmarks.chance texts|small``: when does a larger network gain something at equal training FLOPs?

Networks are widened while they train, in plain PyTorch, and end with the FLOPs of the host. Results go to
``--output`` after every host, and are printed as tables; ``--table`` prints those that are there.
"""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.chance import tables
from benchmarks.machine import machine
from benchmarks.measurements import RESULTS

MEASUREMENTS = {
    "texts": "transformers of 0.25 to 5 million parameters on Python source (hours on a GPU)",
    "small": "residual networks and perceptrons on MNIST-1D and digits (hours on a CPU)",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, keep, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here. Leave --device out, or say --device cpu.")
    path = options.output / f"{options.what}.json"
    if not options.table and not options.quick and path.exists():
        parser.error(f"{path} holds results already. Name another --output, or delete it to measure anew.")
    if options.table:
        trees = json.loads(path.read_text())["trees"]
    else:
        trees = []
        measure = import_module(f"benchmarks.chance.{options.what}").measure
        for tree in measure(1 if options.quick else options.seeds, options.device, is_quick=options.quick):
            trees.append(tree)
            if not options.quick:
                write(path, machine(), trees)
                print(f"{tree['host']}, seed {tree['seed']}, {tree['steps']} steps: {tree['loss']:.3f}", flush=True)
    print(getattr(tables, options.what)(trees))


def write(path: Path, measured_on: dict[str, Any], trees: list[dict[str, Any]]) -> None:
    """Write results, a line for each tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(tree) for tree in trees)
    path.write_text(f'{{"machine": {json.dumps(measured_on)},\n"trees": [\n{lines}\n]}}\n')


def _parser() -> argparse.ArgumentParser:
    told = "; ".join(f"{name}: {text}" for name, text in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chance", description=__doc__)
    parser.add_argument("what", choices=MEASUREMENTS, help=told)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu", help="where to train")
    parser.add_argument("--seeds", type=int, default=2, help="of every host")
    parser.add_argument("--quick", action="store_true", help="tiny hosts, seconds on a CPU; nothing is kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "chance", help="folder of the results")
    parser.add_argument("--table", action="store_true", help="print the tables of the results that are kept")
    return parser


if __name__ == "__main__":
    main()
