"""Two ranks, of which the second is harmed: ``python -m tests.faults.harmed_rank FOLDER TIMEOUT FAULT...``.

Each fault takes two processes that are forked off here, where nothing has begun a thread, and that grow the toy model.
Tells as JSON, fault by fault, what either rank said, and how many seconds it took until both had ended.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import esper
from esper.contracts.errors import HarmedError, RankError
from esper.kasmina.places.place import Place
from esper.runtime.run import Run
from esper.shards import is_sharded
from tests.ranks.scenarios import FEW, batches, built, digest
from tests.runtime.toy import Script, growing

STOPPED = "stopped"
SHARDED = " where parameters are sharded"


Fault = Callable[[esper.Session, random.Random], None]


def flip(session: esper.Session, chance: random.Random) -> None:
    """One bit of one number of one parameter. A lower one is rounded away by the next steps."""
    held = [one for one in session._run.model.parameters() if one.numel() and not is_sharded(one)]
    held += [group for place in session._run.places.values() for group in fossils(place)]
    if not held:  # nothing has grown yet
        return
    parameter = chance.choice(held)
    with torch.no_grad():
        bits = parameter.view(-1).view(torch.int64)
        bits[chance.randrange(bits.numel())] ^= 1 << chance.randrange(40, 52)


def fossils(place: Place) -> list[Tensor]:
    return [place.arena.fossil_bytes(index) for index in range(len(place.arena.fossils))]


def command(session: esper.Session, chance: random.Random) -> None:
    """One that the other rank is not given."""
    session.germinate("0", 0, "bottleneck_mlp", settings={"hidden": 2})


def not_finite(session: esper.Session, chance: random.Random) -> None:
    with torch.no_grad():
        next(session._run.model.parameters()).view(-1)[0] = float("nan")


def faults(timeout: float) -> dict[str, Fault]:
    """What is done to the second rank before a step; to be unseen, ranks are not compared."""
    return {
        "none": lambda session, chance: None,
        "flipped bit": flip,
        "extra command": command,
        "not finite": not_finite,
        "killed": lambda session, chance: os.kill(os.getpid(), signal.SIGKILL),
        STOPPED: lambda session, chance: os.kill(os.getpid(), signal.SIGSTOP),
        "late": lambda session, chance: time.sleep(1.5 * timeout),
        "a little late": lambda session, chance: time.sleep(timeout / 8),
        "unseen": flip,
    }


def train(fault: Fault, rank: int, at: int, seed: int, timeout: float, shard: Any) -> str:
    """What became of this rank."""
    config = growing(layers=["", "0"], max_emergencies=1)
    session = built(2, config, Script({1: [""]}), FEW, rank_timeout=timeout, shard=shard)
    chance = random.Random(seed)
    try:
        for epoch in batches(rank, 2, FEW):
            for batch in epoch:
                if rank == 1 and session.step_count == at:
                    fault(session, chance)
                session.step(batch)
            session.after_epoch()
        session.finish()
    except RankError as error:
        return f"RankError: {error}"
    except HarmedError as error:
        return f"HarmedError: {error}"
    return f"done: {digest(session._run.model.state_dict())}"


def child(fault: str, rank: int, at: int, folder: Path, number: int, timeout: float) -> None:
    torch.set_num_threads(1)
    if fault.startswith("unseen"):
        Run.compare_ranks = lambda run: None  # type: ignore[method-assign]
    address, patience = f"file://{folder / f'store{number}'}", timedelta(seconds=timeout)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=patience)
    said = folder / f"said{number}-{rank}"
    try:
        kind = fault.removesuffix(SHARDED)
        said.write_text(train(faults(timeout)[kind], rank, at, number, timeout, None if kind == fault else {}))
    except Exception:
        said.write_text(traceback.format_exc())
        raise


def harmed(fault: str, folder: Path, number: int, timeout: float) -> dict[str, object]:
    """What both ranks said, ``""`` where one said nothing."""
    last = FEW * 10 - 10  # no arm comes after that, whose weights would take the place of what was flipped
    first = last - 20 if fault == f"flipped bit{SHARDED}" else 1  # from then on there is a graft, which is whole
    at, begun = random.Random(number).randrange(first, last), time.monotonic()
    if fault.startswith("unseen"):
        at = last + 5
    children = []
    for rank in range(2):
        if (process := os.fork()) == 0:
            try:
                child(fault, rank, at, folder, number, timeout)
            finally:
                os._exit(0)
        children.append(process)
    os.waitpid(children[0], 0)
    if fault.startswith(STOPPED):
        os.kill(children[1], signal.SIGKILL)
    os.waitpid(children[1], 0)
    said = [path.read_text() if (path := folder / f"said{number}-{rank}").exists() else "" for rank in range(2)]
    return {"fault": fault, "at": at, "said": said, "seconds": time.monotonic() - begun}


def main(folder: Path, timeout: float, names: list[str]) -> None:
    print(json.dumps([harmed(fault, folder, number, timeout) for number, fault in enumerate(names)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
