"""Copies of blocks in a session: tried, refused to the byte or kept, and resumed."""

from collections import OrderedDict
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import host_state_dict
from tests.few import few
from tests.runtime import toy
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import Recipe, Script, Trial, growing

BLOCKS = "blocks.*"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.fc2(torch.relu(self.fc1(self.norm(x)))))


def host() -> nn.Module:
    torch.manual_seed(0)
    steps = OrderedDict(embed=nn.Linear(4, 6), blocks=nn.Sequential(Block(), Block()), head=nn.Linear(6, 3))
    torch.manual_seed(1)
    return nn.Sequential(steps)


@dataclass(frozen=True)
class Deepening(Script):
    """Copies both blocks at the end of the second epoch."""

    def command(self, place: str | tuple[str, int]) -> Command:
        assert isinstance(place, str)
        return Command(place, "all", State.GERMINATED, blueprint="deepen", trial=self.trial)


def recipe(trial: str = "round", **settings) -> Recipe:
    config = growing(layers=None, max_candidates=1, **settings)
    return Recipe(config, model=host, policy=Deepening({1: [BLOCKS]}, trial=trial), example=toy.DATA.x[:8])


def never() -> Trial:
    """The run in which nothing grows."""
    return replace(recipe(), policy=Script({})).build()


def assert_host_is(trial: Trial, other: Trial) -> None:
    theirs = host_state_dict(other.model)
    differing = [name for name, value in host_state_dict(trial.model).items() if not torch.equal(theirs[name], value)]
    assert differing == []


@pytest.mark.parametrize("arms", few(["in_turn", "side_by_side"], ["in_turn"]))
def test_a_round_refuses_them_to_the_byte(arms):
    trial = recipe(gate_z=1e8, arms=arms).build().train(8)
    (end,) = trial.events("round_ended")
    (arm,) = trial.events("arm_ended")
    assert end["adopted"] is None
    assert arm["gain"] != 0
    assert not trial.run.places[BLOCKS].arena.statistics
    assert_host_is(trial, never().train(8))


def test_the_hosts_differ_where_they_are_kept():
    trial = recipe(gate_z=1.0).build().train(8)
    assert trial.events("round_ended")[0]["adopted"]["layer_id"] == BLOCKS
    assert trial.state(BLOCKS) is State.FINE_TUNING
    with pytest.raises(AssertionError):
        assert_host_is(trial, never().train(8))


def test_they_are_kept_and_exported():
    trial = recipe(gate_z=1.0, keep_looks=(0.95,)).build().train()
    trial.session.finish()
    (report,) = trial.session.field_reports
    assert (report.blueprint, report.outcome) == ("deepen", "FOSSILIZED")
    plain = esper.export(trial.model)
    torch.testing.assert_close(plain.eval()(toy.DATA.held_x), trial.model.eval()(toy.DATA.held_x))


@pytest.mark.parametrize("step", few([23, 47, 66], [47]))
def test_a_run_resumes_to_the_byte(step, tmp_path):
    """In the window of its round, once they are adopted, and later on."""
    made = recipe(gate_z=1.0, keep_looks=(0.95,))
    cut(made, lambda trial: trial.session.step_count == step, tmp_path)
    assert_equal(resume(made, tmp_path), whole(made))
