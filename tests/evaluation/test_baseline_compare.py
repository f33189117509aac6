"""A base and a change measured in turns. Both are small packages that say how long a call of theirs takes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError, EvaluationError
from esper.evaluation.baseline.cells import WHAT, Cell, Setting
from esper.evaluation.baseline.compare import Rules, Timed, Weighed, compare
from esper.evaluation.baseline.comparison import verdict
from esper.evaluation.baseline.workload import _core_waits

SCRIPT = """
import random, time
import esper
noise = random.Random(esper.SEED)
def answer(question):
    if question["do"] == "build":
        return {"state_bytes": esper.STATE, "host_bytes": esper.HOST + noise.choice(esper.WOBBLE), "device_bytes": None}
    drift = 1 + 10 * (time.monotonic() % 100)  # slower and slower, for both
    slowdown = esper.SLOWDOWN.get(question["what"], 1.0)
    return {"seconds": [drift * slowdown * noise.lognormvariate(0, esper.NOISE) for _ in range(question["calls"])]}
"""
PLAIN = {"SEED": 0, "SLOWDOWN": {}, "NOISE": 0.05, "STATE": 1000, "HOST": 10**8, "WOBBLE": [0]}


@pytest.fixture
def found(tmp_path):
    """Compares a plain package with one of other properties."""

    def compared(rules=None, **change):
        (tmp_path / "script.py").write_text(SCRIPT)
        for name, values in (("base", PLAIN), ("change", PLAIN | {"SEED": 1} | change)):
            (tmp_path / name / "esper").mkdir(parents=True)
            lines = [f"{key} = {value!r}" for key, value in values.items()]
            (tmp_path / name / "esper" / "__init__.py").write_text("\n".join(lines))
        sources, rules = (tmp_path / "base", tmp_path / "change"), rules or Rules()
        return list(compare(*sources, [Cell(32, 100)], Setting("cpu"), rules, script=tmp_path / "script.py"))

    return compared


def verdicts(found) -> dict[str, str]:
    return {one.what: one.verdict for one in found}


def test_what_is_the_same_is_fine_and_soon_decided(found):
    same = found()
    assert verdict(same) == "fine"
    assert max(len(one.base_s) for one in same if isinstance(one, Timed)) < 40


def test_a_latency_that_is_slower_by_a_tenth_is_a_regression_and_the_others_are_fine(found):
    slower = found(SLOWDOWN={"step": 1.1})
    assert verdicts(slower) == {
        "forward": "fine",
        "step": "regression",
        "live_step": "fine",
        "state_bytes": "fine",
        "host_bytes": "fine",
    }
    assert verdict(slower) == "regression"


def test_a_faster_change_is_fine(found):
    assert verdict(found(SLOWDOWN=dict.fromkeys(WHAT, 0.5))) == "fine"


def test_a_slowdown_below_the_threshold_is_fine(found):
    assert verdict(found(Rules(threshold=0.3), SLOWDOWN={"step": 1.1})) == "fine"


def test_too_few_blocks_leave_it_undecided_which_is_not_fine(found):
    few = found(Rules(blocks=3), SLOWDOWN={"step": 1.1})
    assert verdicts(few)["step"] == "undecided"
    assert verdict(few) == "undecided"


def test_bytes_of_seeds_are_compared_exactly(found):
    assert verdicts(found(STATE=1051))["state_bytes"] == "regression"


def test_memory_that_grew_in_every_look_is_a_regression(found):
    assert verdicts(found(HOST=11 * 10**7))["host_bytes"] == "regression"


def test_memory_that_grew_in_one_look_is_looked_at_again(found):
    (memory,) = [one for one in found(SEED=2, WOBBLE=[0, 10**8]) if one.what == "host_bytes"]
    assert isinstance(memory, Weighed)
    assert memory.verdict == "fine"


def test_a_base_that_lacks_what_is_measured_is_named(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "esper").mkdir()
    (tmp_path / "esper" / "__init__.py").write_text("SEED = 0")
    with pytest.raises(EvaluationError, match=r"the base cannot .*AttributeError.*STATE.* Name a later commit"):
        list(compare(tmp_path, tmp_path, [Cell(1, 1)], Setting("cpu"), Rules(), script=tmp_path / "script.py"))


@pytest.mark.parametrize(
    "wrong", [{"threshold": -0.1}, {"threshold": float("nan")}, {"memory_threshold": float("inf")}, {"blocks": 0}]
)
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Rules(**wrong)


SPIN = "while True: pass"


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="the kernel does not tell")
def test_time_in_which_others_had_the_core_is_none_of_the_calls():
    """On one core with three others, what works for 100 ms lasts for some 400."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(3)]
    try:
        time.sleep(0.3)
        waits = _core_waits()
        waited, begun, on_core = next(waits), time.perf_counter(), time.thread_time()
        while time.thread_time() - on_core < 0.1:
            pass
        lasted, waited = time.perf_counter() - begun, next(waits) - waited
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, cores)
    assert lasted > 0.2
    assert lasted - waited == pytest.approx(0.1, abs=0.03)
