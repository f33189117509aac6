"""Jobs that are lines of files."""

import json

import pytest

from benchmarks.growth.trials_jobs import compute, finished


def double(number: int) -> dict[str, int]:
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return {"double": 2 * number}


def test_a_finished_job_is_a_line_with_its_machine(tmp_path):
    assert compute(double, {"a": 1, "b": 2}, tmp_path / "one.jsonl", 1) == []
    done = finished(tmp_path)
    assert {key: one["double"] for key, one in done.items()} == {"a": 2, "b": 4}
    assert all("torch" in one["machine"] for one in done.values())


def test_a_failed_job_is_told_and_the_others_are_kept(tmp_path, capsys):
    failures = compute(double, {"bad": -1, "good": 1}, tmp_path / "one.jsonl", 1)
    assert failures == ["bad: ValueError: -1 is below 0"]
    assert "FAILED bad" in capsys.readouterr().out
    assert list(finished(tmp_path)) == ["good"]


def test_what_a_file_of_another_machine_holds_is_not_computed_again(tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"key": "a", "machine": {}, "double": 7}) + "\n")
    compute(double, {"a": 1, "b": 2}, tmp_path / "mine.jsonl", 1)
    assert finished(tmp_path)["a"]["double"] == 7
    assert len((tmp_path / "mine.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_cut_line_is_computed_again(tmp_path, cut):
    file = tmp_path / "one.jsonl"
    compute(double, {"a": 1, "b": 2}, file, 1)
    whole = file.read_text()
    (last,) = (key for key in "ab" if f'"key": "{key}"' in whole.splitlines()[-1])
    file.write_text(whole[:-cut])
    assert last not in finished(tmp_path)
    compute(double, {"a": 1, "b": 2}, file, 1)
    assert {key: one["double"] for key, one in finished(tmp_path).items()} == {"a": 2, "b": 4}
