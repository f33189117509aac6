"""A run whose arms run side by side, in a process of its own.

``threads``: the process has used several threads of torch before; prints how many arms ended.
``untold``: the same, but arms are not told to use one thread; prints the error that this ends with.
``killed``: the process is killed while its arms run; each arm writes its process id into the file ``arms``.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from esper.contracts.errors import ArmError
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

LAYERS = ["", "0:2"]


def work() -> None:
    """Forward and backward passes that torch deals to all the threads that it may use."""
    a = torch.full((600, 600), 0.1, requires_grad=True)
    (a @ a).relu().sum().backward()
    torch.nn.functional.conv2d(torch.randn(8, 16, 64, 64), torch.randn(16, 16, 3, 3)).relu().sum()


def main(mode: str) -> None:
    run = os.getpid()

    def loss(model, batch):
        if os.getpid() != run and mode == "killed":
            with Path("arms").open("a") as file:
                file.write(f"{os.getpid()}\n")
            if len(set(Path("arms").read_text().split())) == 2:
                os.kill(run, signal.SIGKILL)
        elif os.getpid() != run:
            signal.alarm(2 if mode == "untold" else 500)  # ends an arm that waits for ever
            work()
            signal.alarm(0)
        return toy.loss(model, batch)

    if mode != "killed":
        torch.set_num_threads(4)
        work()
    if mode == "untold":
        torch.set_num_threads = lambda count: None
    policy = Script({1: LAYERS})
    trial = Recipe(growing(layers=LAYERS, arms="side_by_side"), policy=policy).build(loss=loss)
    try:
        trial.train_until(lambda trial: bool(trial.events("round_ended")))
        print(len(trial.events("arm_ended")))
    except ArmError as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1])
