"""Several ranks are refused before the first step, in one sentence; one is not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

import esper
from tests.runtime import toy
from tests.runtime.toy import Recipe

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")


def run_ranks(folder: Path, world_size: int) -> list[str]:
    """What every rank says."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.runtime.ranked_run", str(folder / "store")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(world_size)
    ]
    return [process.communicate()[0].strip() for process in processes]


def test_each_of_two_ranks_is_refused_by_name(tmp_path):
    said = run_ranks(tmp_path, 2)
    assert len(said) == 2
    for rank, text in enumerate(said):
        assert text.startswith(f"This process is rank {rank} of 2: Esper trains in one process only so far")
        assert text.endswith("Start one process.")


def test_a_single_rank_trains(tmp_path):
    """The control."""
    assert run_ranks(tmp_path, 1) == ["trained"]


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
class TestAModelCalledThroughDistributedDataParallel:
    @staticmethod
    def session(call: Any, **options: Any) -> esper.Session:
        def loss(model: nn.Module, batch: Any) -> torch.Tensor:
            return toy.loss(call(session.model), batch)

        session = Recipe().build(loss=loss, **options)
        return session

    def test_is_refused_in_the_first_step_and_nothing_was_trained(self):
        trial = self.session(lambda model: nn.parallel.DistributedDataParallel(model, find_unused_parameters=True))
        before = trial.model[0].weight.detach().clone()
        with pytest.raises(esper.ConfigError, match=r"through DistributedDataParallel.*Call the wrapped model itself"):
            trial.session.step(next(toy.batches(0)))
        assert torch.equal(trial.model[0].weight, before)

    def test_is_the_only_one_refused(self):
        """The control."""
        self.session(lambda model: model).session.step(next(toy.batches(0)))
