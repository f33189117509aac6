"""The control plane: one run of 100,000 layers, 10,000 runs of ten, and how many one controller serves."""

import time
from statistics import median
from typing import Any

from benchmarks.scaling import many_runs, one_run, queueing
from benchmarks.scaling.light import percentile

PERIOD_S = 60.0
"""Between two questions of a run."""

FEW, FAN_OUT = 20, (50, 100, 200)
QUESTIONS = (250, 500, 1000, 2000)
"""Layers of a question: the time of a decision grows with their square."""


def measure() -> dict[str, Any]:
    """All of it; some minutes."""
    begun = time.process_time()
    service = one_run.service_seconds(10, 200)
    loads = [
        {"runs": runs, "controllers": controllers} | queueing.waits(runs, PERIOD_S, controllers, service)
        for runs in (100, 1000, 3000, 10_000)
        for controllers in (1, 4)
    ]
    found = {
        "one run": {
            "reports": [one_run.reports(layers) for layers in one_run.LAYERS],
            "questions": [
                *(one_run.question(layers) for layers in QUESTIONS),
                one_run.question(500, seeds=64),
            ],
        },
        "a controller": {
            "median ms": round(1e3 * median(service), 3),
            "p99 ms": round(1e3 * percentile(service, 0.99), 3),
            "questions a second": round(len(service) / sum(service)),
            "period s": PERIOD_S,
            "service s": [round(one, 5) for one in service],
            "loads": loads,
        },
        "everyone asks": [many_runs.simulate(runs, 10) for runs in FAN_OUT],
        "10,000 runs": many_runs.simulate(10_000, 10, asking=FEW, patience_s=120.0),
        "a bus that loses": many_runs.simulate(100, 10, loses=0.01, patience_s=5.0),
    }
    found["processor seconds"] = round(time.process_time() - begun)
    return found
