"""A process for ``test_churn``: trains one run after the other for so many seconds, with all beside it that a run can
have: a bus, metrics for Prometheus, TensorBoard, the debugger, checkpoints written meanwhile. Prints how many steps it
made, by how many bytes it has grown since it was warm, and whether it has as many files and threads as then. Then the
same of as many seconds as it is told secondly, in which it keeps five megabytes of each run."""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from esper.flags import resolve
from esper.observability.metrics.prometheus import Metrics
from esper.observability.tracking.following import Tracking
from esper.runtime.link.link import Link
from tests.faults.churning import bytes_in_use, handles
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing, train_from

WARM_UP = 0.25
"""Share of the time in which caches of torch and of Python fill."""

LEAST_RUNS = 3
KEPT = 5_000_000
FLAGS = Path(__file__).parents[2] / "deploy" / "flags.json"


def live(number: int, folder: Path) -> int:
    """One run from its first step to its last, of which seeds grow and some are culled; its steps."""
    directory, trial = folder / str(number), ("round", "live")[number % 2]
    config = growing(
        layers=["", "4"],
        round_fraction=0.2,
        hold_fraction=0.1,
        objective="pseudo_residual",
        incubation_fraction=0.05,
        seed=number,
    )
    link = Link(f"sqlite:{folder / 'bus.db'}", f"run-{number}")
    metrics = Metrics(0, "127.0.0.1", f"run-{number}")
    tracking = Tracking("tensorboard", directory)
    try:
        run = Recipe(
            config,
            epochs=6,
            model=lambda: toy.host(dropout=0.2, batch_norm=True),
            policy=Script({1: ["", "4"], 3: ["4", ""]}, trial=trial),
        ).build(
            loader=(source := toy.loader()),
            directory=directory,
            checkpoint_steps=5,
            saves_in_background=True,
            flags=resolve(f"run-{number}", FLAGS, {}),
            debug=True,
            on_event=link,
        )
        link.follow(run.session, lambda text: None)
        run.session.subscribe(metrics)
        tracking.follow(run.session)
        train_from(run, source)
        return run.session.step_count
    finally:
        tracking.close()
        metrics.close()
        link.close()


def lived(seconds: float, kept: list[bytearray] | None = None) -> dict[str, float | bool]:
    """What was done, and by how much the process has grown.

    Args:
        seconds: how long.
        kept: takes so many bytes for each run.
    """
    begun, runs, steps = time.monotonic(), 0, 0
    warm: tuple[int, int, tuple[int, int]] | None = None
    with tempfile.TemporaryDirectory() as folder:
        while (spent := time.monotonic() - begun) < seconds or runs < LEAST_RUNS:
            if warm is None and spent >= WARM_UP * seconds and runs > 0:
                warm = runs, bytes_in_use(), handles()
            steps += live(runs, Path(folder))
            runs += 1
            if kept is not None:
                kept.append(bytearray(KEPT))
        assert warm is not None
        return {
            "runs": runs - warm[0],
            "steps": steps,
            "bytes": bytes_in_use() - warm[1],
            "is_as_before": handles() == warm[2],
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([lived(float(sys.argv[1])), lived(float(sys.argv[2]), [])]))
