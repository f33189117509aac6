"""``python -m benchmarks.watching.writing DIR SEEDS RATE BOUNDARIES``: writes a made-up run while it goes on."""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from tests.observability.recorded import MEASURES, STEPS_PER_EPOCH, Log, model_event, write_lines

SAMPLES = 16
"""Different lines of telemetry, which come again and again: making one takes longer than writing it."""


def write(directory: Path, seeds: int, rate: float, boundaries: int) -> None:
    """Write boundaries, ``rate`` of them a second."""
    directory.mkdir(parents=True, exist_ok=True)
    log = Log(boundaries * STEPS_PER_EPOCH, model_event(seeds, 24, boundaries * STEPS_PER_EPOCH))
    write_lines(directory / "audit.jsonl", [{**log.model, "time": time.time()}])
    sensed = itertools.cycle(_sensed(log))
    started = time.monotonic()
    with (directory / "metrics.jsonl").open("w") as metrics, (directory / "audit.jsonl").open("a") as audit:
        for epoch in range(1, boundaries + 1):
            step = epoch * STEPS_PER_EPOCH
            losses = {"train_loss": 2 / epoch**0.5, "val_loss": 2.1 / epoch**0.5, "val_metric": 1 - 0.9 / epoch**0.5}
            told = {"epoch": epoch, "step": step, "lr": 0.003, **losses, **log.flops(step)}
            metrics.write(json.dumps({"event": "epoch", "time": time.time(), **told}) + "\n")
            head = json.dumps({"event": "telemetry", "time": time.time(), "epoch": epoch, "step": step})
            metrics.write(f'{head[:-1]}, "places": {next(sensed)}}}\n')
            metrics.flush()
            if epoch % 20 == 10:
                asked = {"layer_id": "", "seed_id": "all", "target": "GERMINATED", "who": "writing"}
                refused = {"step": step, "epoch": epoch, "arm": None, **asked, "reason": "it is made up"}
                audit.write(json.dumps({"event": "refused", "time": time.time(), **refused}) + "\n")
                audit.flush()
            time.sleep(max(0.0, started + epoch / rate - time.monotonic()))


def _sensed(log: Log) -> list[str]:
    generator = np.random.default_rng(0)
    return [
        json.dumps({place["layer_id"]: _place(generator, place["seeds"]) for place in log.model["places"]})
        for _ in range(SAMPLES)
    ]


def _place(generator: np.random.Generator, seeds: int) -> dict[str, list[float]]:
    return {name: [float(f"{value:.4g}") for value in np.exp(generator.normal(0, 1, seeds))] for name in MEASURES}


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
