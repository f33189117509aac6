"""Real runs, made once: what ``esper run`` and a session of one's own leave behind."""

import signal
from pathlib import Path

import pytest
import torch

from esper.cli import conclusion
from esper.cli.main import main
from esper.runtime.session import Session
from tests.few import few
from tests.runtime.toy import Recipe, growing

GROWS = """\
epochs: 12
batch_size: 80
lr: 0.02
growth: {{compare: steps, grow_at: 0.1, round_fraction: 0.15, max_rounds: 1, min_targets: 0, {more}}}
"""


def esper_run(directory: Path, more: str = "", *line: str) -> int:
    """``esper run`` on digits for some epochs; gives its exit code."""
    config = directory.with_name(f"{directory.name}.yaml")
    config.write_text(GROWS.format(more=more))
    return main(["run", "--config", str(config), "--output", str(directory), *line])


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Where the directories of all real runs lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def grown(runs) -> Path:
    """A run with controls in which a graft was kept."""
    assert esper_run(runs / "grown") == 0
    return runs / "grown"


@pytest.fixture(scope="session")
def refused(runs) -> Path:
    """A run whose candidates were all refused, for no improvement is enough."""
    assert esper_run(runs / "refused", "gate_z: 1.0e+6") == 0
    return runs / "refused"


@pytest.fixture(scope="session")
def no_controls(runs) -> Path:
    """A run without rows to compare with."""
    assert esper_run(runs / "no_controls", "", "--no-controls") == 0
    return runs / "no_controls"


@pytest.fixture(scope="session")
def interrupted(runs) -> Path:
    """A run that was stopped after three fifths of its way."""
    step = Session.step

    def stop_at_72(session, batch):
        if session.step_count == 72:
            signal.raise_signal(signal.SIGINT)
        return step(session, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "step", stop_at_72)
        assert esper_run(runs / "interrupted") == 130
    return runs / "interrupted"


@pytest.fixture(scope="session")
def without_static(runs) -> Path:
    """A run that was stopped among its controls: one is finished."""

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conclusion, "static", stop)
        assert esper_run(runs / "without_static") == 130
    return runs / "without_static"


@pytest.fixture(scope="session")
def rolled_back(runs) -> Path:
    """A session of one's own, without configuration and result: what it adopted was rolled back."""
    recipe = Recipe(growing(layers=["", "2"], keep_looks=(0.95,), quarantine_epochs=2))
    with torch.random.fork_rng(devices=[]):
        trial = recipe.build(directory=runs / "rolled_back")
        trial.train_until(lambda trial: bool(trial.events("round_ended")))
        assert trial.session.rollback().accepted
        trial.train()
        trial.session.finish()
    assert [report.outcome for report in trial.session.field_reports] == ["ROLLED_BACK"]
    return runs / "rolled_back"


REAL = ("grown", "refused", "no_controls", "interrupted", "without_static", "rolled_back")


@pytest.fixture(params=few(REAL, ["grown", "refused", "interrupted", "rolled_back"]))
def real_run(request) -> Path:
    """Each of the real runs."""
    return request.getfixturevalue(request.param)
