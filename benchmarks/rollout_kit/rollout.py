"""Replays of rollouts: runs that are drawn, the real decisions. How often is harm stopped, and health aborted?

Runs come at random, two kinds of model, each on a machine of its own speed; some machines are busy, the load of all
drifts, runs crash, memory rises through a warm-up and in steps as grafts come, now and then a file is damaged.
"""

import math
import multiprocessing
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.engine import Decision, decide, settled
from esper.evaluation.rollout.health import Point, RunHealth
from esper.evaluation.rollout.plan import Criteria, Terms

PLAN = (1.0, 10.0, 25.0, 50.0, 75.0, 100.0)
LOOK_S = 3600.0
RUN_EVERY_S = 60.0
BOUNDARIES = 24
STEPS_PER_BOUNDARY = 100
LONGEST_S = 14 * 86_400.0
CRITERIA = Criteria(patience_s=2 * 86_400.0, stale_s=3600.0)


@dataclass(frozen=True)
class Harm:
    """What the flag does to runs.

    Args:
        slower: share by which steps take longer.
        worse: share by which the loss is higher.
        failing: share of runs that crash in addition.
        leaking: share of runs whose memory grows without end.
        corrupt: share of runs whose data are damaged.
        missing: share of runs that tell nothing.
    """

    slower: float = 0.0
    worse: float = 0.0
    failing: float = 0.0
    leaking: float = 0.0
    corrupt: float = 0.0
    missing: float = 0.0


DEGRADED = {
    "slower": Harm(slower=0.3),
    "more errors": Harm(failing=0.25),
    "memory": Harm(leaking=0.8),
    "corrupt": Harm(corrupt=0.3),
    "missing": Harm(missing=1.0),
}
"""The five ways: what a team would want to be saved from."""

SMALLER = {
    "15 % slower": Harm(slower=0.15),
    "20 % slower": Harm(slower=0.2),
    "loss 20 % higher": Harm(worse=0.2),
    "10 points more errors": Harm(failing=0.1),
    "15 points more errors": Harm(failing=0.15),
}
"""A little beyond the margin."""


@dataclass
class World:
    """Runs as they come, and what they have told by now."""

    harm: Harm
    random: np.random.Generator
    now: float = 0.0
    unsettled: list[RunHealth] = field(default_factory=list)
    count: int = 0

    def pass_time(self, seconds: float, percent: float) -> None:
        """Let runs begin, a share of them with the flag on."""
        for begin in np.sort(
            self.random.uniform(self.now, self.now + seconds, self.random.poisson(seconds / RUN_EVERY_S))
        ):
            is_on = bool(self.random.uniform(0, 100) < percent)
            self.count += 1
            if not is_on or self.random.uniform() >= self.harm.missing:
                self.unsettled.append(self._run(float(begin), is_on, self.harm if is_on else Harm()))
        self.now += seconds

    def seen(self, known: set[str]) -> list[RunHealth]:
        """What a source tells now."""
        self.unsettled = [run for run in self.unsettled if run.run not in known]
        return [part for run in self.unsettled if (part := _by(run, self.now)) is not None]

    def _run(self, begin: float, is_on: bool, harm: Harm) -> RunHealth:
        random = self.random
        size = 1 + 2 * int(random.integers(2))
        load = 1 + 0.1 * math.sin(2 * math.pi * begin / 86_400)
        step_s = 0.5 * size * load * random.lognormal(0, 0.12) * (1 + harm.slower)
        step_s *= random.uniform(1.5, 3) if random.uniform() < 0.05 else 1
        seconds = np.cumsum(step_s * STEPS_PER_BOUNDARY * random.lognormal(0, 0.1, BOUNDARIES))
        crashes = random.uniform() < 0.03 + harm.failing
        told = int(random.integers(1, BOUNDARIES)) if crashes else BOUNDARIES
        memory = self._memory(random.uniform() < harm.leaking)
        points = [
            Point(begin + float(at), STEPS_PER_BOUNDARY * (number + 1), int(held))
            for number, (at, held) in enumerate(zip(seconds, memory, strict=True))
        ]
        damaged = random.uniform() < 0.001 + harm.corrupt
        return RunHealth(
            run=f"run-{self.count}",
            kind=f"size {size}",
            is_on=is_on,
            began=begin,
            last=points[told - 1].time,
            points=tuple(points[:told]),
            is_finished=not crashes,
            loss=float(0.4 * size * random.lognormal(0, 0.08) * (1 + harm.worse)),
            damage="line 7 is damaged" if damaged else None,
        )

    def _memory(self, leaks: bool) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """A warm-up, a step where a graft came, noise; and a leak of five percent a boundary."""
        at, random = np.arange(BOUNDARIES), self.random
        held = 1 - 0.5 * np.exp(-at / random.uniform(1, 4))
        held += 0.15 * (at >= random.integers(BOUNDARIES)) * (random.uniform() < 0.4)
        held += 0.05 * at * leaks
        return 2e9 * held * (1 + 0.01 * random.standard_normal(BOUNDARIES))


def _by(run: RunHealth, now: float) -> RunHealth | None:
    """A run as far as it has come; None before its first boundary."""
    if now >= run.last:
        return run
    points = tuple(point for point in run.points if point.time <= now)
    if not points:
        return None
    return replace(run, points=points, last=points[-1].time, is_finished=False, loss=None)


def replay(harm: Harm, seed: int, *, looks_before_data: bool = False, criteria: Criteria = CRITERIA) -> dict[str, Any]:
    """One rollout to its end.

    Args:
        harm: what the flag does.
        seed: of the world.
        looks_before_data: the control: an engine that takes a step without asking for data.
        criteria: of the rollout.
    """
    world = World(harm, np.random.default_rng(seed))
    state = State(Terms("grafting_strategies", PLAN, "flags.json", "runs", criteria), 0.0)
    state.apply({"event": "set", "time": 0.0})
    highest = state.percent
    while state.outcome == "running" and world.now < LONGEST_S:
        world.pass_time(LOOK_S, state.percent)
        decision = decide(state, world.seen(settled(state)), world.now)
        if looks_before_data and decision.verdict == "hold":
            decision = replace(decision, verdict="promote" if state.step + 1 < len(PLAN) else "complete")
        _apply(state, decision, world.now)
        highest = max(highest, state.percent)
    with_flag = len({unit.run for unit in state.units if unit.is_on})
    return {
        "outcome": state.outcome,
        "why": state.why,
        "highest": highest,
        "hours": world.now / 3600,
        "with_flag": with_flag,
        "runs": world.count,
    }


def _apply(state: State, decision: Decision, now: float) -> None:
    before = state.is_set
    state.apply({"time": now, **decision.line()})
    if before and not state.is_set:
        state.apply({"event": "set", "time": now})


def told(harm: Harm, count: int, seed: int) -> dict[str, Any]:
    """What became of so many replays."""
    with multiprocessing.Pool() as pool:
        ends = pool.starmap(replay, [(harm, seed + number) for number in range(count)], chunksize=1)
    outcomes = Counter(end["outcome"] for end in ends)
    return {
        "replays": count,
        "taken back": outcomes["rolled back"],
        "completed": outcomes["completed"],
        "still waiting after 14 days": outcomes["running"],
        "reasons": dict(Counter(end["why"].partition(":")[0] for end in ends if end["outcome"] == "rolled back")),
        "highest share reached, percent": {
            f"{top:g}": n for top, n in sorted(Counter(e["highest"] for e in ends).items())
        },
        "median hours": float(np.median([end["hours"] for end in ends])),
        "median runs with the flag on": float(np.median([end["with_flag"] for end in ends])),
        "median runs": float(np.median([end["runs"] for end in ends])),
    }


def measure(count: int = 500) -> dict[str, Any]:
    """Clean replays, degraded ones in equal parts, and no data at all."""
    each = count // len(DEGRADED)
    silent = Harm(missing=1.0)
    naive = [replay(silent, number, looks_before_data=True) for number in range(20)]
    return {
        "plan": PLAN,
        "clean": told(Harm(), count, 0),
        "degraded": {name: told(harm, each, 10_000 * (1 + n)) for n, (name, harm) in enumerate(DEGRADED.items())},
        "smaller harm": {
            name: told(harm, each // 10, 10_000 * n) for n, (name, harm) in enumerate(SMALLER.items(), 10)
        },
        "no data": {
            "promoted": sum(replay(silent, number)["highest"] > PLAN[0] for number in range(20)),
            "promoted by an engine that does not ask for data": sum(end["highest"] > PLAN[0] for end in naive),
            "replays": 20,
        },
    }
