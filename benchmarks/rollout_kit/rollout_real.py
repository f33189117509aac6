"""Two rollouts over real runs: one from 1 to 100 percent, one that is taken back because its runs are really slower.

Each run grows a small network on digits, under the flags that the store gives to its model, and writes its directory.
After each run ``esper rollout advance`` looks. The next model is one of the cohort of which the step has fewer runs, as
its id says: a team has thousands of models, this has forty runs.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from esper.cli.main import main
from esper.cli.options import PACES
from esper.contracts.config import GrowthConfig
from esper.contracts.flags import FLAGS, Flags
from esper.evaluation.growing import growing
from esper.evaluation.rollout.engine import COHORTS
from esper.evaluation.rollout.rollout import begun
from esper.flags import FlagStore, set_flag
from esper.tasks.catalogue import load_task

PLAN = "1,10,25,50,75,100"
MOST_RUNS = 100


def run(flags: Flags, number: int, directory: Path, epochs: int) -> None:
    """One small run, as ``esper run --flags`` does it."""
    seed = number // 2 % 10  # two runs one after the other learn the same
    task, pace = load_task("digits", seed, "mlp"), PACES["mlp"]._asdict() | {"epochs": epochs}
    growing(task, GrowthConfig(seed=seed), **pace, seed=seed, flags=flags, directory=directory).finish()


def roll_out(root: Path, flag: str, epochs: int, min_runs: int, plan: str = PLAN) -> dict[str, Any]:
    """A rollout to its end.

    Args:
        root: an empty directory.
        flag: which; the others are on for all.
        epochs: of each run.
        min_runs: of each cohort and step.
        plan: shares in percent.

    Returns:
        Every decision, and how it ended.
    """
    store, state = root / "flags.json", root / "state"
    (root / "runs").mkdir()
    for name in FLAGS:
        set_flag(store, name, "0%" if name == flag else "on")
    where = ["--flags", str(store), "--runs", str(root / "runs"), "--min-runs", str(min_runs)]
    assert main(["rollout", "start", "--state", str(state), "--flag", flag, "--plan", plan, *where]) == 0
    flags, ids = FlagStore(store, {}, look_every_s=0.0), (f"model-{number}" for number in itertools.count())
    decisions, cohorts = [], {True: 0, False: 0}
    for number in range(MOST_RUNS):
        now = begun(state)
        if now.outcome != "running":
            break
        good = {True: 0, False: 0} | _good_of_step(now)
        is_first = number // 2 % 2 == 0  # who goes first takes turns
        wanted = now.percent == 100 or good[True] < good[False] or (good[True] == good[False] and is_first)
        resolved = next(found for one in ids if (found := flags.resolve(one)).is_on(flag) is wanted)
        run(resolved, number, root / "runs" / resolved.model_id, epochs)
        cohorts[wanted] += 1
        main(["rollout", "advance", "--state", str(state)])
        line = begun(state).last_look or {}
        decisions.append(
            {"run": number + 1, "flag": COHORTS[wanted], "percent": now.percent, "verdict": line["verdict"]}
        )
    end = begun(state)
    return {
        "flag": flag,
        "outcome": end.outcome,
        "why": end.why,
        "share in the store, percent": end.percent,
        "runs": {COHORTS[is_on]: count for is_on, count in cohorts.items()},
        "measures": (end.last_look or {})["measures"],
        "decisions": decisions,
    }


def _good_of_step(state: Any) -> dict[bool, int]:
    runs = {(unit.is_on, unit.run) for unit in state.units[state.units_before :]}
    return {is_on: sum(one == is_on for one, _ in runs) for is_on in COHORTS}


def measure() -> dict[str, Any]:
    """Both."""
    found = {}
    for name, flag, epochs, min_runs in (
        ("from 1 to 100 percent", "grafting_strategies", 12, 4),
        ("taken back", "extended_lifecycle", 20, 5),
    ):
        with tempfile.TemporaryDirectory() as root:
            found[name] = roll_out(Path(root), flag, epochs, min_runs)
        print(json.dumps(found[name]["decisions"]), flush=True)
    return found
