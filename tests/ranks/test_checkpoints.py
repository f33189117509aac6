"""Ranks go on from their checkpoints to the byte, also where one was killed before it had written its last; and others
than have written them may go on."""

import pytest
from torch import distributed

from tests.few import few
from tests.ranks.launch import heard, started

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nothing has interrupted comes to."""
    folder = tmp_path_factory.mktemp("whole")
    return heard(folder, 2, f"finished:{folder / 'run'}")


def finished(tmp_path, size):
    ends = heard(tmp_path, size, f"finished:{tmp_path / 'run'}")
    return [next(iter(one.values())) for one in ends]


@pytest.mark.parametrize("step", few([24, 37], [24]), ids=["in an arm", "between rounds"])
def test_ranks_that_were_killed_end_as_if_they_were_not(tmp_path, whole, step):
    for process in started(tmp_path, 2, f"interrupted:{tmp_path / 'run'}:{step}"):
        process.communicate()
        assert process.returncode != 0
    (tmp_path / "store2").unlink()
    newest = [
        max(folder.glob("[0-9]*")).name for folder in (tmp_path / "run/checkpoints", tmp_path / "run/checkpoints/rank1")
    ]
    assert newest[0] > newest[1]  # rank 0 had written one more
    ends = finished(tmp_path, 2)
    assert ends == [next(iter(one.values())) for one in whole]


@pytest.mark.parametrize(("before", "after"), few([(2, 1), (1, 2)], [2]))
def test_another_number_of_ranks_goes_on(tmp_path, before, after):
    heard(tmp_path, before, f"half:{tmp_path / 'run'}")
    ends = finished(tmp_path, after)
    assert all(end["weights"] == ends[0]["weights"] and end["moves"] == ends[0]["moves"] for end in ends)
    assert len(ends[0]["losses"]) == 8
