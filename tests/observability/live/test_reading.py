"""A run directory is read as far as it is new, whatever happens to its files meanwhile."""

import json
import os

import numpy as np
import pytest

from esper.observability.lattice import lattice, lengthened
from esper.observability.live.run import DirectoryRun
from esper.observability.log import Log
from esper.observability.record import Reading, read
from tests.observability import directories
from tests.observability.recorded import write_synthetic
from tests.observability.unpacking import unpack


def note(number: int) -> str:
    return json.dumps({"event": "note", "time": float(number), "step": number, "text": f"number {number}"}) + "\n"


def steps(lines) -> list[int]:
    return [event["step"] for _, event in lines or []]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "audit.jsonl").write_text(note(1) + note(2))
    return tmp_path / "audit.jsonl"


def append(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class TestLog:
    def test_each_line_is_told_once(self, path):
        log = Log(path)
        assert steps(log.look()) == [1, 2]
        assert log.look() is None
        append(path, note(3))
        assert log.look() == [(3, json.loads(note(3)))]
        assert not log.is_anew

    def test_half_a_line_waits_for_its_end(self, path):
        log = Log(path)
        log.look()
        whole = note(3)
        append(path, whole[:20])
        assert log.look() == []
        assert log.faults(must_tell=False, patience_s=60.0) == []
        assert "ends in the middle of line 3" in log.faults(must_tell=False, patience_s=0.0)[0]
        append(path, whole[20:])
        assert steps(log.look()) == [3]
        assert log.faults(must_tell=False, patience_s=0.0) == []

    @pytest.mark.parametrize("how", ["replaced", "cut", "written anew in place"])
    def test_a_log_of_a_run_that_went_back_is_read_from_its_first_line(self, path, how):
        log = Log(path)
        log.look()
        if how == "replaced":
            other = path.with_name("new")
            other.write_text(note(1) + note(7))
            other.replace(path)
        elif how == "cut":
            os.truncate(path, len(note(1)))
            append(path, "")
        else:
            path.write_text(note(8) + note(9) + note(10))
        expected = {"replaced": [1, 7], "cut": [1], "written anew in place": [8, 9, 10]}[how]
        assert steps(log.look()) == expected
        assert log.is_anew

    def test_damaged_lines_are_named(self, path):
        append(path, "{nonsense\n" + note(4))
        log = Log(path)
        assert steps(log.look()) == [1, 2, 4]
        assert "line 3 is damaged" in log.faults(must_tell=False, patience_s=0.0)[0]

    def test_a_log_that_is_gone_is_a_fault_until_it_comes(self, path):
        log = Log(path)
        log.look()
        text = path.read_text()
        path.unlink()
        assert log.look() == []
        assert "audit.jsonl is missing" in log.faults(must_tell=False, patience_s=0.0)[0]
        path.write_text(text)
        assert steps(log.look()) == [1, 2]


def test_a_run_that_grows_ends_as_the_same_record(tmp_path):
    """Line by line, with cuts in the middle of lines."""
    whole = write_synthetic(tmp_path / "whole", seeds=100, boundaries=12)
    growing = tmp_path / "growing"
    growing.mkdir()
    reading = Reading(growing, patience_s=60.0)
    generator = np.random.default_rng(0)
    contents = {name: (whole / name).read_bytes() for name in ("audit.jsonl", "metrics.jsonl")}
    while any(contents.values()):
        for name, rest in contents.items():
            size = int(generator.integers(0, 30_000))
            with (growing / name).open("ab") as file:
                file.write(rest[:size])
            contents[name] = rest[size:]
        reading.look()
        assert reading.record.faults == []
    for name in ("config.yaml", "result.json"):
        (growing / name).write_bytes((whole / name).read_bytes())
    assert reading.look()
    expected = read(whole)
    for name in ("config", "result", "audit", "epochs", "telemetry", "faults"):
        assert getattr(reading.record, name) == getattr(expected, name), name


def test_a_deleted_directory_leaves_what_was_read(tmp_path):
    directory = directories.finished(tmp_path / "run")
    reading = Reading(directory)
    reading.look()
    known = reading.record
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert reading.look()
    assert reading.record.faults == [f"{directory} is gone: this is what was read before."]
    assert reading.record.audit == known.audit
    assert not reading.look()


class TestLattice:
    def test_packs_of_single_boundaries_hold_what_one_pack_holds(self, tmp_path):
        directory = write_synthetic(tmp_path, seeds=100, boundaries=12)
        record = read(directory)
        one, many = lattice(record), None
        for boundaries in range(1, 13):
            early = record.__class__(directory, audit=record.audit, telemetry=record.telemetry[:boundaries])
            before, many = many, lengthened(early, many)
            if before is not None:
                assert many["packs"][:-1] == before["packs"]
        for packed, same in zip(unpack(many), unpack(one), strict=True):
            assert np.array_equal(packed, same, equal_nan=True)
        assert {**one, "packs": None} == {**many, "packs": None}

    def test_of_many_boundaries_every_second_goes_and_nothing_else(self, tmp_path):
        directory = write_synthetic(tmp_path, seeds=100, boundaries=24)
        seeds = sum(place["seeds"] for place in lattice(read(directory))["places"])
        reading = Reading(directory, most_cells=10 * seeds)
        reading.look()
        record = reading.record
        assert (record.every, len(record.telemetry), len(record.epochs)) == (4, 6, 24)
        whole = unpack(lattice(read(directory)))
        for packed, same in zip(unpack(lengthened(record, None)), whole, strict=True):
            shown = same[:, ::4] if same.ndim == 3 else same[::4]
            assert np.array_equal(packed, shown, equal_nan=True)

    def test_a_place_that_changes_is_packed_anew(self, tmp_path):
        directory = write_synthetic(tmp_path, seeds=100, boundaries=12)
        record = read(directory)
        before = lengthened(record, None)
        other = {**record.telemetry[-1][1], "step": 9999, "places": {"new": {"chunk_variance": [1.0, 2.0, 3.0]}}}
        more = record.__class__(directory, audit=record.audit, telemetry=[*record.telemetry, (99, other)])
        after = lengthened(more, before)
        assert after["places"][-1]["label"] == "new"
        assert unpack(after)[0].shape[1:] == (13, unpack(before)[0].shape[2] + 3)


def test_the_state_of_a_run_that_goes_on_from_a_checkpoint_counts_its_lines_once(tmp_path):
    directory = directories.finished(tmp_path / "run")
    run = DirectoryRun(directory)
    run.look()
    counts = dict(run.state.kinds)
    assert counts["epoch"] == 4
    text = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    other = directory / "new"
    other.write_text("".join(text[: len(text) // 2]))
    other.replace(directory / "metrics.jsonl")
    run.look()
    assert 0 < run.state.kinds["epoch"] < 4
    assert run.state.kinds["transition"] == counts["transition"]
