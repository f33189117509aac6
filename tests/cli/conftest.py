"""What the tests of the command line share."""

import pytest

GROWS = """\
epochs: 12
lr: 0.01
growth: {compare: steps, choice: best, grow_at: 0.1, round_fraction: 0.15, max_rounds: 1, min_targets: 0, layers: [""]}
"""


@pytest.fixture(scope="session")
def grows(tmp_path_factory) -> str:
    """A configuration with which a short run grows for sure."""
    path = tmp_path_factory.mktemp("config") / "grows.yaml"
    path.write_text(GROWS)
    return str(path)
