"""``python -m benchmarks.controller.exam --policy learned:FILE``: a controller against the heuristic, on real data.

Every family and seed is trained by the host alone, for three lengths of time, by the heuristic, and by each policy that
is examined. A run is a file, so that an exam that was cut goes on, and the next examinee finds the others' runs. The
result goes to ``--output`` with the hardware, and is printed as tables. What is asked stands in ``docs/exam.md``.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_origin

from benchmarks.controller.families import FAMILIES
from benchmarks.controller.real_data import prepare
from benchmarks.controller.running import DATA, HEURISTIC, NEVER, Job, found, jobs, weights_of, work
from benchmarks.controller.scores import by_family, overall, pairs
from benchmarks.controller.telling import beside, told
from benchmarks.controller.verdict import is_of_placebos, judged, judged_by_placebos
from benchmarks.machine import machine
from esper.cli.options import GROWTH_HINTS
from esper.cli.values import alternatives, fit
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, EsperError, closest
from esper.evaluation.pool import each
from esper.whole_file import write_whole

RUNS = Path("runs") / "exam"
SEEDS = 10


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing, print tables, write the result; 1 if a run failed, or is missing."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        growth = dict(setting(text) for text in options.growth)
        GrowthConfig(**growth)
        policies = {name: weights_of(name) for name in dict.fromkeys((NEVER, HEURISTIC, *options.policy))}
        asked = jobs(
            [FAMILIES[name] for name in options.families], range(options.seeds), policies, growth, options.runs
        )
        failed = compute(asked, options.workers, options.seconds)
        result = examined(asked, options.families, options.policy, growth)
    except EsperError as error:
        parser.error(str(error))
    for one in result["examined"]:
        print(f"\n{one['policy']} {one['weights']}\n\n{told(one)}")
    if len(result["examined"]) > 1:
        print(f"\n{beside(result['examined'])}")
    write_whole(options.output, (json.dumps({"machine": machine(), **result}, indent=1) + "\n").encode())
    for failure in failed:
        print(f"FAILED {failure}")
    if result["missing"]:
        print(f"{result['missing']} of {len(asked)} runs are missing: the tables are of whole families and seeds only.")
    return 1 if failed or result["missing"] else 0


def compute(asked: Mapping[str, Job], workers: int, seconds: float | None) -> list[str]:
    """Do the runs that are not there yet; what failed is told, and loses none of the others.

    Args:
        asked: runs, in the order in which they begin.
        workers: processes, of one thread each.
        seconds: after which no more are waited for; None waits for all.
    """
    missing = {key: job for key, job in asked.items() if found(job) is None}
    failed: list[str] = []
    if not missing:
        return failed
    (where,) = {job.folder for job in missing.values()}
    prepare({job.family.data for job in missing.values()}, where / DATA)
    for job in missing.values():
        job.path.parent.mkdir(parents=True, exist_ok=True)
    until = None if seconds is None else time.monotonic() + seconds
    with closing(each(work, missing, min(workers, len(missing)))) as heard:
        for count, one in enumerate(heard, start=1):
            print(f"{count} of {len(missing)}: {one.key}: {one.value}", flush=True)
            if one.kind == "failed":
                failed.append(f"{one.key}: {one.value}")
            if until is not None and time.monotonic() >= until:
                break
    return failed


def examined(
    asked: Mapping[str, Job], families: Sequence[str], policies: Sequence[str], growth: Mapping[str, Any]
) -> dict[str, Any]:
    """What the runs that are there come to, for each examinee.

    Raises:
        DataError: if there is nothing to compare yet.
    """
    known = {(job.family.name, job.seed, job.policy): run for job in asked.values() if (run := found(job)) is not None}
    wide = [name for name in families if FAMILIES[name].is_wide]
    results = []
    for policy in policies:
        compared = pairs(known, families, [HEURISTIC, policy])
        rows, whole = by_family(compared, policy), overall(compared, policy)
        if is_of_placebos(growth):
            verdict = judged_by_placebos(compared, policy)
        else:
            verdict = judged(compared, policy, rows, whole, wide)
        weights = next(job.weights for job in asked.values() if job.policy == policy)
        one = {"policy": policy, "weights": weights, "wide": wide, "families": rows, "overall": whole}
        results.append(one | {"verdict": verdict})
    return {"growth": dict(growth), "missing": len(asked) - len(known), "examined": results}


def setting(text: str) -> tuple[str, Any]:
    """A setting of growth, ``name=value``; the parts of a list have commas between.

    Raises:
        ConfigError: if there is no such setting, or the value is none for it.
    """
    name, _, value = text.partition("=")
    if name not in GROWTH_HINTS:
        raise ConfigError(f"growth has no setting {name!r}. {closest(name, GROWTH_HINTS)}")
    hint = GROWTH_HINTS[name]
    if any(get_origin(one) is Sequence for one in alternatives(hint)):
        return name, fit(f"growth.{name}", value.split(","), hint)
    try:
        plain = json.loads(value)
    except ValueError:
        plain = value
    return name, fit(f"growth.{name}", plain, hint)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.controller.exam", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    help_ = "who is examined: learned:FILE, or a name that esper run --policy takes; may be given several times"
    parser.add_argument("--policy", action="append", required=True, help=help_)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME", help="some")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each family, from 0 on")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, required=True, help="file of the result")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    parser.add_argument("--seconds", type=float, help="after which no more runs are waited for")
    help_ = "setting of growth for all but the host alone, NAME=VALUE, such as blueprints=placebo"
    parser.add_argument("--growth", action="append", default=[], metavar="NAME=VALUE", help=help_)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
