"""Following a run with a tracker: what it costs a run that it fails, and what is imported."""

import json
import subprocess
import sys

import numpy as np
import pytest

from esper.contracts.errors import ConfigError
from esper.observability.tracking.following import Tracking
from esper.observability.tracking.measures import Measures
from esper.observability.tracking.tensorboard import histogram
from esper.observability.tracking.tracker import check_trackers
from tests.observability.tracked import tensorboard
from tests.runtime.toy import Recipe, growing

RECIPE = Recipe(config=growing(max_rounds=0), epochs=3)


def test_a_run_without_trackers_imports_none():
    code = """
import sys
import esper, esper.cli.main
from esper.observability.tracking.following import Tracking
loaded = {"tensorboard", "wandb", "mlflow", "trackio", "numpy.testing"} & sys.modules.keys()
sys.exit(str(loaded) if loaded else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_tracker_that_fails_is_told_once_and_training_goes_on(tmp_path, monkeypatch):
    told: list[str] = []
    tracking = Tracking("tensorboard", tmp_path, tell=told.append)
    trial = RECIPE.build()
    tracking.follow(trial.session)
    trial.train(1)

    def full(step, values):
        raise OSError("No space left on device")

    monkeypatch.setattr(tracking._tracker, "scalars", full)
    trial.train()
    trial.session.finish()
    tracking.close()
    (sentence,) = told
    assert "tensorboard has failed" in sentence
    assert "No space left on device" in sentence
    assert trial.session.is_finished
    assert [event["text"] for event in trial.events("note") if "listener" in event["text"]] == []


def test_what_a_tracker_missed_it_is_told_when_the_run_is_followed_again(tmp_path):
    """But for what seeds sensed, which is not kept."""
    trial = RECIPE.build()
    trial.train(2)
    tracking = Tracking("tensorboard", tmp_path)
    tracking.follow(trial.session)
    trial.train()
    tracking.close()
    stored = tensorboard(tmp_path)
    assert [step for step, _ in stored.scalars["loss/select"]] == [10, 20, 30]
    assert [step for step, _ in stored.histograms["sensed/gradient_norm/model"]] == [30]


def test_a_record_that_is_damaged_is_told_and_training_goes_on(tmp_path):
    told: list[str] = []
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "tensorboard.json").write_text("{")
    tracking = Tracking("tensorboard", tmp_path, tell=told.append)
    trial = RECIPE.build()
    tracking.follow(trial.session)
    trial.train(1)
    tracking.close()
    assert len(told) == 1


def test_how_far_a_tracker_was_told_is_noted_when_a_step_is_over(tmp_path):
    """More may happen in the last one yet."""

    def step() -> int:
        return json.loads((tmp_path / "tracking" / "tensorboard.json").read_text())["step"]

    trial = RECIPE.build()
    tracking = Tracking("tensorboard", tmp_path)
    tracking.follow(trial.session)
    trial.train(2)
    assert 10 <= step() < 20
    tracking.close()
    assert step() == 20


def test_what_a_process_that_was_killed_wrote_beyond_its_note_is_not_shown_twice(tmp_path):
    killed = RECIPE.build()
    tracking = Tracking("tensorboard", tmp_path)
    tracking.follow(killed.session)
    killed.train(2)
    tracking._tracker.flush()  # beyond step 10, which is the last that is noted
    assert [step for step, _ in tensorboard(tmp_path).scalars["loss/select"]] == [10, 20]
    trial = RECIPE.build()
    tracking = Tracking("tensorboard", tmp_path)
    tracking.follow(trial.session)
    trial.train()
    tracking.close()
    assert [step for step, _ in tensorboard(tmp_path).scalars["loss/select"]] == [10, 20, 30]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tensorbord"], "Did you mean 'tensorboard'"),
        (["tensorboard", "tensorboard"], "named twice"),
    ],
)
def test_trackers_that_cannot_be_are_refused(names, said):
    with pytest.raises(ConfigError, match=said):
        check_trackers(names)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "esper.observability.tracking.wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_trackers(["wandb"])


@pytest.mark.parametrize("values", [[1.5], [2.0, 2.0], [-1.0, 0.0, 7.0], [0.1 * at * at for at in range(500)]])
def test_a_histogram_for_tensorboard_counts_as_numpy_does(values):
    told = histogram(values)
    assert (told.num, told.min, told.max) == (len(values), min(values), max(values))
    assert (told.sum, told.sum_squares) == pytest.approx((np.sum(values), np.square(values).sum()))
    edges = [told.min, *told.bucket_limit]
    assert edges == sorted(edges)
    assert list(told.bucket) == np.histogram(values, bins=edges)[0].tolist()
    if told.min < told.max:
        assert edges[-1] == pytest.approx(told.max)


def test_values_that_are_not_finite_are_left_out():
    line = {"event": "finished", "select_loss": None, "select_metric": 0.5, "train_flops": 10}
    assert Measures().scalars(line) == {"final/metric": 0.5, "final/train_flops": 10.0}


def test_there_are_no_more_names_the_longer_a_run_is():
    trial = Recipe(config=growing(max_rounds=3), epochs=12).build()
    trial.train()
    measures, names = Measures(), set()
    counts = []
    for line in trial.session.events * 3:
        names |= measures.scalars(line).keys()
        counts.append(len(names))
    third = len(counts) // 3
    assert counts[third - 1] == counts[-1]
