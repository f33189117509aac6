"""A run for ``test_resume``: trains in the directory that is named first, resuming if it can, and prints where it ends.

With ``KILL_AT=arm:9`` it kills itself at the ninth training step of an arm, ``window:3`` at the third step of a window,
``run:70`` at the seventieth step of the run. With ``TRIAL=live`` its grafts grow in the run itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

PLACE, _, COUNT = os.environ.get("KILL_AT", "never:0").partition(":")


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    steps = {"arm": 0, "window": 0, "run": 0}

    def loss(model, batch):
        if trial.run.arm is not None:
            steps["arm"] += 1
        elif trial.rounds.current is not None:
            steps["window"] += 1
        steps["run"] = trial.session.step_count
        if steps.get(PLACE) == int(COUNT):
            os.kill(os.getpid(), signal.SIGKILL)
        return toy.loss(model, batch)

    recipe = Recipe(
        growing(layers=["", "4"], round_fraction=0.2),
        model=lambda: toy.host(dropout=0.2, batch_norm=True),
        policy=Script({1: ["", "4"], 5: ["4", ""]}, trial=os.environ.get("TRIAL", "round")),
    )
    source = toy.loader()
    trial = recipe.build(loss=loss, loader=source, directory=directory, checkpoint_steps=4)
    if (directory / "checkpoints").exists():
        torch.rand(17)  # whatever a new process may have drawn before it resumes
        trial.session.load(directory / "checkpoints")
    toy.train_from(trial, source)
    print(json.dumps({"digest": trial.digest(), "flops": trial.session.train_flops}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
