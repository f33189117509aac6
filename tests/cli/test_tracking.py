"""``esper run`` with trackers, resumed or not."""

import signal

import pytest

from esper.cli.main import main
from esper.runtime.session import Session
from tests.observability.tracked import tensorboard


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, grows):
    """A run that began without trackers, was stopped, and went on with TensorBoard."""
    directory = tmp_path_factory.mktemp("run") / "digits"
    step = Session.step

    def stop_at_64(session, batch):
        if session.step_count == 64:
            signal.raise_signal(signal.SIGINT)
        return step(session, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "step", stop_at_64)
        assert main(["run", "--config", grows, "--no-controls", "--output", str(directory)]) == 130
    assert not (directory / "tensorboard").exists()
    assert main(["run", "--resume", "last", "--output", str(directory), "--tensorboard"]) == 0
    return directory


def test_a_run_that_is_resumed_with_tensorboard_has_all_of_its_curves(resumed):
    stored = tensorboard(resumed)
    assert [step for step, _ in stored.scalars["loss/select"]] == [10 * epoch for epoch in range(1, 13)]
    assert stored.scalars["final/loss"][0][0] == 120
    assert "adopted a graft" in " ".join(stored.texts.values())


def test_the_configuration_of_a_run_does_not_tell_who_was_told(resumed):
    assert "tensorboard" not in (resumed / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--track", "tensorbord"], "Did you mean 'tensorboard'"),
        (["--track", "tensorboard", "--tensorboard"], "named twice"),
        (["--track", ""], "no tracker ''"),
        (["--track", ","], "no tracker ''"),
    ],
)
def test_trackers_that_cannot_be_are_refused_before_anything_is_written(tmp_path, capsys, line, said):
    assert main(["run", "--output", str(tmp_path / "run"), *line]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
