"""The head of a page shows the numbers by which the story judges, and the state of the run."""

import pytest

from esper.observability.head import facts, figures
from esper.observability.record import read
from tests.observability import directories
from tests.observability.directories import gain, lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
BETTER, WORSE, UNCLEAR = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


def _shown(directory):
    return {one["label"]: str(one["value"]) for one in figures(read(directory))}


@pytest.mark.parametrize(
    ("loss", "metric", "label", "shown"),
    [
        (BETTER, UNCLEAR, "gain in test loss over the host trained on, nats", "+0.050"),
        (WORSE, UNCLEAR, "gain in test loss over the host trained on, nats", "-0.050"),
        (UNCLEAR, BETTER, "gain in accuracy over the host trained on, points", "+5.0"),
        (BETTER, BETTER, "gain in accuracy over the host trained on, points", "+5.0"),
        (BETTER, WORSE, "gain in accuracy over the host trained on, points", "-5.0"),
        (UNCLEAR, UNCLEAR, "gain in accuracy over the host trained on, points", "+1.0"),
    ],
)
def test_the_gain_is_the_one_of_the_headline(tmp_path, loss, metric, label, shown):
    found = result([FOSSIL], host_on=row(0.3, 0.9), gains={"host_on": gain(loss, metric), "static": None})
    gains = {
        name: value for name, value in _shown(directories.finished(tmp_path, result=found)).items() if "gain" in name
    }
    assert gains == {label: shown}


def test_a_network_whose_loss_is_not_finite_has_no_gain(tmp_path):
    gains = {"host_on": gain(WORSE, WORSE), "static": None}
    found = result([FOSSIL], grown=row(None, 0.1), host_on=row(0.3, 0.9), gains=gains)
    assert list(_shown(directories.finished(tmp_path, result=found))) == [
        "test accuracy",
        "parameters",
        "training FLOPs",
    ]


def test_what_is_trained_shows_what_its_log_ends_with(tmp_path):
    ended = directories.log()[-1] | {"step": 107, "select_loss": 0.25, "train_flops": 7_000_000}
    directory = directories.write(tmp_path, config=None, audit=[ended], metrics=[directories.epoch(1)])
    assert _shown(directory) == {
        **{"steps": "107", "held-out loss": "0.2500", "held-out accuracy": "90.0%", "training FLOPs": "7.0 M"}
    }
    assert facts(read(directory))[0] == {"label": "status", "value": "trained"}


@pytest.mark.parametrize("where", ["result", "config"])
def test_trained_weights_are_named(where, tmp_path):
    path = "/data/run-17/w9.pt"
    files = {
        "result": {"result": result([FOSSIL], weights=path)},
        "config": {"config": directories.CONFIG | {"weights": path}, "result": None},
    }
    told = {one["label"]: str(one["value"]) for one in facts(read(directories.finished(tmp_path, **files[where])))}
    assert told["began with"] == "w9.pt"


def test_random_weights_are_not_named(tmp_path):
    assert "began with" not in [one["label"] for one in facts(read(directories.finished(tmp_path)))]
