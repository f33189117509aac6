"""What several tests of ranks need."""

import pytest
from torch import distributed

from tests.ranks.launch import heard

AS_ONE = ("grown", "live", "static graph", "shards")
"""Where each sample has the same part in two ranks as in one: neither statistics nor samples of a rank alone count."""


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """What one process comes to."""
    return heard(tmp_path_factory.mktemp("one"), 1, *AS_ONE)[0]


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
