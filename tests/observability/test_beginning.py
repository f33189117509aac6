"""A run that began with trained weights says so, and what its controls are then."""

import pytest

from esper.observability.record import read
from esper.observability.story import story, verdict
from tests.observability import directories
from tests.observability.directories import lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
HOST, STATIC = row(0.30, 0.90), row(0.20, 0.94, 1290)
FROM = "/data/run-17/weights.safetensors"


def _told(directory):
    told = story(read(directory))
    return "\n".join(map(str, [told.headline, *told.paragraphs]))


def test_trained_weights_are_told_with_what_they_mean_for_the_controls(tmp_path):
    found = result([FOSSIL], host_on=HOST, static=STATIC, weights=FROM)
    told = _told(directories.finished(tmp_path, result=found))
    assert (
        f"The run began with trained weights, from {FROM}. The host trained on goes on from the same weights." in told
    )
    assert "The static network is new: it got the FLOPs of this run, but none for what the weights had cost." in told
    assert "they may have seen its held-out and test samples." in told
    assert "began with trained weights" in verdict(found)


@pytest.mark.parametrize("fields", [{}, {"weights": None}], ids=["an older result", "random weights"])
def test_a_run_from_random_weights_does_not_speak_of_weights(fields, tmp_path):
    found = result([FOSSIL], host_on=HOST, static=STATIC, **fields)
    assert "weights" not in _told(directories.finished(tmp_path, result=found)) + verdict(found)


def test_controls_that_were_not_trained_are_not_told_to_begin_anywhere(tmp_path):
    told = _told(directories.finished(tmp_path, result=result([FOSSIL], weights=FROM)))
    assert "The run began with trained weights" in told
    assert "goes on from the same weights" not in told
    assert "The static network is new" not in told


def test_an_unfinished_run_tells_its_weights_by_its_options(tmp_path):
    config = directories.CONFIG | {"weights": FROM}
    told = _told(directories.write(tmp_path, config=config, metrics=[directories.epoch(1)]))
    assert f"The run began with trained weights, from {FROM}." in told
