"""Ranks go on from their checkpoints to the byte, also where one was killed before it had written its last; and others
than have written them may go on, with parameters that are whole or spread over ranks."""

from pathlib import Path

import pytest
from torch import distributed

from tests.few import few
from tests.ranks.launch import heard, started

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")

HOW = ("", "sharded")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nothing has interrupted comes to, with whole parameters and with sharded ones."""
    folder = tmp_path_factory.mktemp("whole")
    ends = heard(folder, 2, *(f"finished:{folder / f'run{how}'}:{how}" for how in HOW))
    return {how: [rank[f"finished:{folder / f'run{how}'}:{how}"] for rank in ends] for how in HOW}


def told(folder: Path, ranks, *scenarios):
    """What so many ranks come to, of whole parameters or sharded ones, one scenario after the other."""
    size, how = ranks
    ends = heard(folder, size, *(f"{scenario}:{folder / 'run'}:{how}" for scenario in scenarios))
    return [list(one.values()) for one in ends]


@pytest.mark.parametrize(("step", "how"), few([(step, how) for step in (24, 37) for how in HOW], [24]))
def test_ranks_that_were_killed_end_as_if_they_were_not(tmp_path, whole, step, how):
    """Step 24 is in an arm, 37 between rounds."""
    for process in started(tmp_path, 2, f"interrupted:{tmp_path / 'run'}:{how}:{step}"):
        process.communicate()
        assert process.returncode != 0
    (tmp_path / "store2").unlink()
    newest = [
        max(folder.glob("[0-9]*")).name for folder in (tmp_path / "run/checkpoints", tmp_path / "run/checkpoints/rank1")
    ]
    assert newest[0] > newest[1]  # rank 0 had written one more
    assert [end for (end,) in told(tmp_path, (2, how), "finished")] == whole[how]


CHANGES = {
    "two, one": [(2, ""), (1, "")],
    "one, two": [(1, ""), (2, "")],
    "two, one, two": [(2, ""), (1, ""), (2, "")],
    "sharded, one": [(2, "sharded"), (1, "")],
    "sharded, one, sharded": [(2, "sharded"), (1, "sharded"), (2, "sharded")],
    "one, sharded": [(1, ""), (2, "sharded")],
    "two, sharded, two": [(2, ""), (2, "sharded"), (2, "")],
    "sharded, three": [(2, "sharded"), (3, "sharded")],
}


@pytest.mark.parametrize("change", few(CHANGES, ["one, two", "sharded, one"]))
def test_another_number_of_ranks_goes_on(tmp_path, change):
    begun, *others = CHANGES[change]
    before = told(tmp_path, begun, "quarter")[0][0]
    for number, ranks in enumerate(others):
        is_last = number == len(others) - 1
        ends = told(tmp_path, ranks, "quarter", "half", *(["finished"] if is_last else []))
        assert ends[0][0]["weights"] == before["weights"]  # it trains no further there
        assert all(end == ends[0] for end in ends)
        before = ends[0][-1]
    assert len(before["losses"]) == 8
