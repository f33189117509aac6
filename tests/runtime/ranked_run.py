"""One rank of a run that is not to begin: ``python -m tests.runtime.ranked_run STORE RANK WORLD_SIZE``."""

import sys

from torch import distributed

import esper
from tests.runtime.toy import Recipe, batches


def main(store: str, rank: int, world_size: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        session = Recipe().build().session
        session.step(next(batches(0)))
        print("trained")
    except esper.ConfigError as error:
        print(error)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
