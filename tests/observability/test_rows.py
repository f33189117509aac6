"""The table of rows shows what the result holds, and what a missing row was missing for."""

import json

import pytest

from esper.observability.cited import Cited
from esper.observability.rows import INTERVALS, table, text
from tests.observability import directories
from tests.observability.directories import gain, result, row

GAINS = {"host_on": gain((0.12, 0.08, 0.16), (0.05, -0.01, 0.11)), "static": None}


def _result(**fields):
    return result([], **{"host_on": row(0.30, 0.90), "static": row(0.2, 0.94, 1290), **fields})


def test_the_table_is_aligned_and_complete():
    lines = text(_result()).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["grown", "host_on", "static"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["grown", "1,292", "4.0", "M", "0.1800", "95.0%", "0.1800", "95.0%", "0.003", "cosine"]


def test_a_missing_row_has_its_reason():
    lines = text(_result(static=None)).splitlines()
    assert lines[3] == "static   - (left out by --no-controls)"
    assert len({len(line) for line in lines[:3]}) == 1


def test_a_loss_that_is_not_finite_is_a_dash():
    assert text(_result(grown=row(None, 0.1))).splitlines()[1].split()[4:8] == ["-", "10.0%", "-", "10.0%"]


def test_a_network_whose_loss_is_not_finite_has_no_gains():
    shown = table(_result(grown=row(None, 0.1), gains=GAINS))
    assert not any(heading.startswith("gain") for heading in shown.headings)
    assert shown.note == ""


def test_gains_stand_below_the_text_and_in_the_table_itself():
    whole = _result(gains=GAINS)
    shown = table(whole)
    above, below = text(whole).split("\n\n")
    assert above == text(_result())
    assert [line.split() for line in below.splitlines()[1:3]] == [
        ["host_on", "+0.120", "[+0.080,", "+0.160]", "+5.0", "[-1.0,", "+11.0]"],
        ["static", "+0.020", "+1.0"],
    ]
    assert below.splitlines()[3] == shown.note
    assert shown.headings[5:7] == ("gain in test loss, nats", "gain in accuracy, points")
    assert [str(one.cells[4]) for one in shown.rows] == ["-", "+0.120 [+0.080, +0.160]", "+0.020"]
    assert INTERVALS in shown.note
    assert table(_result()).note == ""


def test_a_task_without_metric_has_no_such_columns():
    shown = table(_result(metric=None, gains=GAINS))
    assert not any("accuracy" in heading or "None" in heading for heading in shown.headings)
    assert all(len(one.cells) == len(shown.headings) - 1 for one in shown.rows)


def test_an_old_result_has_a_table():
    old = _result()
    for name in ("metric", "host", "planned_steps"):
        del old[name]
    assert text(old) == text(_result())


def test_every_number_is_what_its_source_says(tmp_path):
    whole = _result(gains=GAINS)
    directory = directories.write(tmp_path, result=whole)
    numbers = [part for one in table(whole).rows for cell in one.cells for part in cell if isinstance(part, Cited)]
    assert len(numbers) == 3 * 7 + 6 + 2
    for number in numbers:
        assert directories.evaluated(directory, number.how, list(number.sources)) == pytest.approx(number.value)
    whole["rows"]["static"]["test_loss"] = 0.21
    (directory / "result.json").write_text(json.dumps(whole))
    wrong = [
        number.sources
        for number in numbers
        if directories.evaluated(directory, number.how, list(number.sources)) != pytest.approx(number.value)
    ]
    assert wrong == [
        ("result.json#/rows/static/test_loss",),
        ("result.json#/rows/static/test_loss", "result.json#/rows/grown/test_loss"),
    ]


def test_further_measures_have_a_column_and_units_a_note():
    grown, host_on = (row(0.2, 0.8) | {"test_further": {"RMSE": error}} for error in (54.321, None))
    whole = _result(metric="R2", grown=grown, host_on=host_on, static=None, gains=GAINS)
    shown = table(whole)
    assert shown.headings[3:6] == ("test loss", "R2", "RMSE")
    assert [str(one.cells[4]) for one in shown.rows[:2]] == ["54.32", "-"]
    assert "gain in test loss" in shown.headings
    for one in (whole, whole | {"gains": {}}):
        assert text(one).endswith("in the units of what is predicted.")


@pytest.mark.parametrize("gains", [GAINS, {}])
def test_over_how_many_samples_held_out_columns_are_is_said(gains):
    whole = _result(held_out={"samples": 96, "select": 19}, gains=gains)
    assert "Held-out columns are over the 19 of the 96 held-out samples" in text(whole).splitlines()[-1]
