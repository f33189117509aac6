"""What the tests of the command line share."""

from pathlib import Path

import pytest

from esper.cli.main import main

GROWS = """\
epochs: 12
batch_size: 80
lr: 0.02
growth: {compare: steps, choice: best, grow_at: 0.1, round_fraction: 0.15, max_rounds: 1, min_targets: 0, layers: [""]}
"""


@pytest.fixture(scope="session")
def grows(tmp_path_factory) -> str:
    """A configuration with which a short run grows for sure."""
    path = tmp_path_factory.mktemp("config") / "grows.yaml"
    path.write_text(GROWS)
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, grows) -> Path:
    """A short run that has grown, with controls: its directory, which is left as it is."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", "--config", grows, "--output", str(directory)]) == 0
    return directory
