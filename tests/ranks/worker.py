"""One rank: ``python -m tests.ranks.worker STORE RANK WORLD_SIZE SCENARIO[:ARGUMENT]...`` tells as JSON what became of
each."""

import json
import sys
from datetime import timedelta

import torch
from torch import distributed

from tests.ranks import arm_runs, scenarios

ALL = scenarios.ALL | arm_runs.ALL

TIMEOUT = 600
"""Against hanging."""


def main(store: str, rank: int, size: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    address = f"file://{store}"
    distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
    )
    try:
        print(
            json.dumps({name: ALL[name.split(":")[0]](rank, size, *name.split(":")[1:]) for name in names}, default=str)
        )
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
