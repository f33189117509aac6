"""A process that answers with the sources of one checkout."""

from pathlib import Path

import pytest

import esper
from esper.contracts.errors import EvaluationError
from esper.evaluation.turns import blocks
from esper.evaluation.worker import Worker

OURS = Path(esper.__file__).parents[1]

SCRIPT = """
import esper
count = 0
def answer(question):
    global count
    count += 1
    print("printed beside the answer")
    if question["n"] == 0:
        raise ValueError("zero")
    if question["n"] < 0:
        raise SystemExit(3)
    return {"count": count, "mark": getattr(esper, "MARK", None)}
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_a_worker_remembers_and_what_its_script_prints_is_no_answer(script):
    with Worker(script, OURS, "ours") as worker:
        assert [worker.ask({"n": 1})["count"] for _ in range(3)] == [1, 2, 3]


def test_each_side_imports_the_library_of_its_own_checkout(script, tmp_path):
    (tmp_path / "other" / "esper").mkdir(parents=True)
    (tmp_path / "other" / "esper" / "__init__.py").write_text("MARK = 'other'")
    with Worker(script, OURS, "ours") as ours, Worker(script, tmp_path / "other", "other") as other:
        assert (ours.ask({"n": 1})["mark"], other.ask({"n": 1})["mark"]) == (None, "other")


def test_a_checkout_without_the_library_is_never_measured_with_the_installed_one(script, tmp_path):
    with Worker(script, tmp_path, "empty") as worker, pytest.raises(EvaluationError, match="empty"):
        worker.ask({"n": 1})


def test_what_the_script_raises_is_told_with_the_side(script):
    with Worker(script, OURS, "ours") as worker, pytest.raises(EvaluationError, match=r"ours .* ValueError: zero"):
        worker.ask({"n": 0})


def test_a_process_that_ends_is_told(script):
    with Worker(script, OURS, "ours") as worker, pytest.raises(EvaluationError, match="ended with code 3"):
        worker.ask({"n": -1})


def test_both_orders_of_a_block_come_and_a_seed_repeats_them():
    drawn = [order for order, _ in zip(blocks(0), range(100), strict=False)]
    assert set(drawn) == {("a", "b", "b", "a"), ("b", "a", "a", "b")}
    assert drawn == [order for order, _ in zip(blocks(0), range(100), strict=False)]
    assert drawn != [order for order, _ in zip(blocks(1), range(100), strict=False)]
