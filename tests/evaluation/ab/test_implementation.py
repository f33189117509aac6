"""Functions that are measured in processes of their own."""

import textwrap

import pytest

from esper.contracts.errors import ConfigError
from esper.evaluation.ab.implementation import Place, implementations
from esper.evaluation.ab.record import Plan
from esper.evaluation.ab.runner import ABTestRunner
from esper.evaluation.ab.similarity import Similarity
from esper.evaluation.ab.verdict import Verdict

CODE = """
import ctypes, os, random, time
import numpy as np

def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass

def slow(seed):
    x = np.random.default_rng(seed).normal(size=(50, 3))
    return lambda: (busy(2e-3), 2.0 * x)[1]

def fast(seed):
    x = np.random.default_rng(seed).normal(size=(50, 3))
    return lambda: (busy(1e-3), {"y": [x + x]})[1]

def other_outputs(seed):
    x = np.random.default_rng(seed).normal(size=(50, 3))
    return lambda: 2.0 * x + 3.0 * np.eye(50, 3)

def wider(seed):
    return lambda: np.zeros((50, 4))

def silent(seed):
    return lambda: None

also_fast = fast

def metrics(seed):
    print("noise on the standard output")
    return {"accuracy": np.float32(0.5 + seed)}

def more_metrics(seed):
    return {"accuracy": 0.25}

def raises(seed):
    raise ValueError("no such\\n thing")

def raises_when_timed(seed):
    calls = iter(range(7))
    return lambda: next(calls)

def crashes(seed):
    ctypes.string_at(0)

def leaves(seed):
    os._exit(3)

def hangs(seed):
    time.sleep(60)

def not_finite(seed):
    return {"loss": float("nan")}

number = 3
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "code_of_mine.py").write_text(textwrap.dedent(CODE))
    return Place(tmp_path, (tmp_path,), timeout_s=30.0)


def compared(place, a, b, **plan):
    names = [f"code_of_mine:{name}" for name in (a, b)]
    return ABTestRunner(*implementations(names, place), Plan(**{"max_pairs": 1, "laps": 5} | plan)).run()


def test_the_faster_one_wins_and_outputs_are_held_against_each_other(place):
    found = compared(place, "slow", "fast", max_pairs=12, alpha=0.3)
    assert found.findings["latency_us"].verdict is Verdict.B
    assert found.findings["latency_us"].mean_a > 1900
    assert found.pairs[0].similarity == Similarity(0.0, 0.0, 1.0)


def test_outputs_that_differ_are_told(place):
    alike = compared(place, "slow", "other_outputs").pairs[0].similarity
    assert alike.max_absolute == pytest.approx(3.0)
    assert 0 < alike.max_relative < 1.0
    assert 0.9 < alike.equal_predictions < 1.0
    assert "other shapes" in compared(place, "slow", "wider").pairs[0].similarity
    assert compared(place, "slow", "silent").pairs[0].similarity == "there are no outputs to compare"


def test_metrics_come_back_whatever_is_printed(place):
    pair = compared(place, "metrics", "more_metrics", first_seed=2).pairs[0]
    assert pair.a.metrics == {"accuracy": 2.5}
    assert pair.b.metrics == {"accuracy": 0.25}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "ValueError: no such thing"),
        ("raises_when_timed", "StopIteration"),
        ("crashes", "its process ended with -11"),
        ("leaves", "its process ended with 3"),
        ("not_finite", "loss is 'nan', not a finite number"),
    ],
)
def test_a_function_that_fails_is_a_failed_unit_with_its_reason(place, name, message):
    pair = compared(place, name, "metrics").pairs[0]
    assert pair.a.failed == message
    assert pair.b.metrics == {"accuracy": 0.5}


def test_a_function_that_hangs_is_a_failed_unit(place, tmp_path):
    found = compared(Place(tmp_path, (tmp_path,), timeout_s=2.0), "hangs", "metrics")
    assert found.pairs[0].a.failed == "it took more than 2 s"


def test_two_names_of_one_function_are_the_same(place):
    with pytest.raises(ConfigError, match="A and B are the same"):
        compared(place, "fast", "also_fast")
    assert compared(place, "fast", "also_fast", is_null=True).is_well


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code_of_mine:fats", "has no function 'fats'"),
        ("code_of_mine:number", "has no function 'number'"),
        ("code_of_nobody:fast", "there is no module 'code_of_nobody'"),
    ],
)
def test_a_function_that_is_none_is_refused(place, name, message):
    with pytest.raises(ConfigError, match=message):
        implementations(["code_of_mine:fast", name], place)


def test_a_module_that_cannot_be_imported_is_refused(place, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="importing broken failed: ZeroDivisionError: division by zero"):
        implementations(["broken:f", "code_of_mine:fast"], place)


def test_metrics_and_laps_cannot_be_compared(place):
    with pytest.raises(ConfigError, match="One side gives metrics and the other a callable"):
        compared(place, "metrics", "fast")
