"""Esper's own state keeps its dtype whatever torch's default is."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import esper
from esper.kasmina.seeds.seed_state import COLUMNS
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing


@pytest.fixture(params=[torch.float64, torch.float32], ids=str, autouse=True)
def default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def evaluate(model: torch.nn.Module) -> esper.Evaluation:
    logits = model(toy.DATA.held_x.to(torch.get_default_dtype()))
    return esper.Evaluation(losses=F.cross_entropy(logits, toy.DATA.held_y, reduction="none"))


STRATEGIES = ["fixed_ramp", "performance_linked", "drift_controlled", "grad_norm_gated"]


@pytest.mark.parametrize("strategy", few(STRATEGIES, ["drift_controlled"]))
@pytest.mark.parametrize(("trial", "objective"), [("round", "none"), ("live", "reconstruction")])
def test_a_run_grows_to_its_end(trial, objective, strategy, default):
    recipe = Recipe(growing(objective=objective, trial=trial), policy=Script({1: [""]}, trial=trial))
    there = recipe.build(
        loss=lambda model, batch: F.cross_entropy(model(batch[0].to(default)), batch[1]),
        evaluate=evaluate,
        policy=Strategic(Script({1: [""]}, trial=trial), strategy),
    )
    there.train()
    there.session.finish()
    assert [report.outcome for report in there.session.field_reports] != []
    assert there.events("arm_ended") or there.events("trial_ended")
    (place,) = there.run.places.values()
    assert {name: column.dtype for name, column in place.state.named_buffers()} == COLUMNS
    columns = place.arena.exp_avg, place.arena.exp_avg_sq, place.arena.updates, place.arena.memory
    assert {column.dtype for column in columns} == {torch.float32}
    assert place.arena.slots.dtype == default


class Strategic:
    """A script whose grafts are blended in by another strategy."""

    def __init__(self, script: Script, strategy: str) -> None:
        self._script, self._strategy = script, strategy

    def decide(self, observation):
        return [replace(command, strategy=self._strategy) for command in self._script.decide(observation)]
