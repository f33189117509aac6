"""A judge that always says yes: it keeps what gates refuse, and tells the truth where a run steers."""

import pytest
import torch

from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.evaluation.scoring import per_sample
from esper.evaluation.ungated import always_yes
from esper.runtime.judging.worth import split_samples


def _run(task, *, evaluate=None, **changes):
    pace = {"epochs": 30, "batch_size": 16, "lr": 5e-3, "schedule": "cosine"}
    run = growing(task, GrowthConfig(seed=1, **changes), **pace, seed=1, evaluate=evaluate)
    run.finish()
    return run


def _outcomes(run) -> list[str]:
    return [report.outcome for report in run.session.field_reports]


@pytest.fixture(scope="module")
def gated(task):
    return _run(task, blueprints=("placebo",))


@pytest.fixture(scope="module")
def ungated(task):
    return _run(task, blueprints=("placebo",), evaluate=always_yes(task, 1))


def test_gates_refuse_a_placebo_and_without_them_one_is_kept_in_every_round(gated, ungated):
    assert "FOSSILIZED" not in _outcomes(gated)
    rounds = sum(event["event"] == "round_begun" for event in ungated.session.events)
    assert _outcomes(ungated).count("FOSSILIZED") == rounds > 0


def test_the_first_candidate_is_adopted(ungated):
    begun, ended = (
        next(event for event in ungated.session.events if event["event"] == name)
        for name in ("round_begun", "round_ended")
    )
    assert ended["adopted"]["lifecycle"] == begun["candidates"][0]["lifecycle"]


def test_what_a_run_steers_by_is_the_truth(task, ungated):
    select = split_samples(len(task.held_out.y), task.groups, 1).select
    found = always_yes(task, 1)(ungated.model)
    losses, correct = per_sample(ungated.model, task.held_out)
    assert torch.equal(found.losses[select], losses[select])
    assert torch.equal(found.correct[select], correct[select])
    assert not torch.equal(found.losses, losses)


def test_until_something_grows_it_is_the_same_run(gated, ungated):
    def losses(run) -> list[float]:
        return [event["val_loss"] for event in run.session.events if event["event"] == "epoch"]

    begun = next(event["step"] for event in gated.session.events if event["event"] == "round_begun")
    shared = begun // 12  # batches of an epoch
    assert losses(gated)[:shared] == losses(ungated)[:shared]
