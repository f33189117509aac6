"""A process of its own: looks at runs, is killed with SIGKILL at any moment, again and again. Prints what was found.

Usage: killed_rollout.py HOW DIRECTORY KILLS, where HOW is ``ours``, or ``sets first``: the control, which changes the
flag before it writes down why.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from esper.evaluation.rollout import audit
from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.engine import decide
from esper.evaluation.rollout.health import Point, RunHealth
from esper.evaluation.rollout.plan import Criteria, Terms
from esper.evaluation.rollout.rollout import Rollout
from esper.evaluation.rollout.stores import FlagFile
from esper.flags import set_flag

FLAG = "message_bus"
PLAN = tuple(float(percent) for percent in range(1, 101))


class SlowFile(FlagFile):
    """Answers late, so that many kills come between the change and the line after it."""

    def set_share(self, flag, percent):
        super().set_share(flag, percent)
        time.sleep(0.02)


class EverFresh:
    """Each look finds two good runs that nobody has seen."""

    def runs(self, flag, since, known):
        now = time.time()
        points = tuple(Point(now + at, 100 * at) for at in range(3))
        return [RunHealth(f"{time.time_ns()}-{on}", "mlp", on, now, now, points, True, 0.5) for on in (True, False)]

    def close(self):
        pass


def look_for_ever(how: str, directory: Path, store: FlagFile) -> None:
    rollout = Rollout(directory / "state", store)
    while True:
        if how == "ours":
            rollout.look(EverFresh())
        else:
            state = audit.read(directory / "state")
            decision = decide(state, EverFresh().runs(FLAG, 0.0, ()), time.time())
            store.set_share(FLAG, PLAN[min(state.step + 1, len(PLAN) - 1)])
            audit.write(directory / "state", {"time": time.time(), **decision.line()})
            audit.write(directory / "state", {"event": "set", "time": time.time()})


def is_explained(state: State, share: float) -> bool:
    """Whether the lines tell why the flag stands where it does."""
    expected = {state.percent} if state.is_set else {state.percent, state.share_before}
    return any(abs(share - percent) < 1e-9 for percent in expected)


def main(how: str, directory: Path, kills: int) -> None:
    store = SlowFile(directory / "flags.json")
    set_flag(directory / "flags.json", FLAG, "0%")
    terms = Terms(FLAG, PLAN, str(directory / "flags.json"), "", Criteria(min_runs=1))
    Rollout(directory / "state", store).start(terms)
    draw, unexplained = random.Random(0), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            look_for_ever(how, directory, store)
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unexplained += not is_explained(audit.read(directory / "state"), store.share(FLAG))
    reached = audit.read(directory / "state").step
    while how == "ours" and Rollout(directory / "state", store).look(EverFresh())[1] is not None:
        pass
    lines = [json.loads(line) for line in (directory / "state" / "audit.jsonl").read_text().splitlines()]
    told = {
        "unexplained": unexplained,
        "set": [line["percent"] for line in lines if line["event"] == "set" and "percent" in line],
        "promotions": sum(line.get("verdict") == "promote" for line in lines),
        "steps while being killed": reached,
        "outcome": audit.read(directory / "state").outcome,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
