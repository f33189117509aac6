"""What a run does when it is harmed is a setting; after too many emergencies in a row it stops where it stood best."""

import math
from typing import Any

import pytest
import torch

import esper
from esper.checkpoint.tree import clone
from esper.contracts.lifecycle import State
from tests.runtime import toy
from tests.runtime.test_emergency import alive, blow_up, config, outcomes, steps, wreck
from tests.runtime.toy import Recipe, Script, Trial
from tests.tree_digest import tree_digest


def harmed(**settings: Any) -> Trial:
    """A run whose host was wrecked, before it knows."""
    trial = alive(config_=config(**settings))
    wreck(trial, math.nan)
    return trial


def test_a_run_may_go_back_also_where_one_graft_alone_is_at_fault():
    responses = {}
    for response in ("cull", "rollback"):
        trial = alive(config_=config(emergency_response=response))
        trial.session.germinate("2", "all", settings={"hidden": 4})
        trial.train(1)
        steps(trial, 2)
        blow_up(trial, "2")
        trial.session.after_epoch()
        assert trial.events("emergency")[0]["response"] == response
        responses[response] = outcomes(trial), len(trial.events("rollback"))
    assert responses == {"cull": ([("2", "CULLED")], 0), "rollback": ([("2", "ROLLED_BACK")], 1)}


class TestLowerLearningRates:
    def test_hold_from_the_rollback_on_and_are_no_business_of_the_scheduler(self, tmp_path):
        trial = harmed(emergency_response="lower_lr", emergency_lr_factor=0.25)
        twin = harmed(emergency_response="rollback")
        for one in (trial, twin):
            one.session.after_epoch()
            assert len(one.events("rollback")) == 1
        before = clone(trial.run.snapshots.body()["model"])
        moved = []
        for one in (trial, twin):
            assert tree_digest(one.run.snapshots.body()["model"]) == tree_digest(before)
            seen = []
            handle = one.optimizer.register_step_pre_hook(
                lambda optimizer, *_, seen=seen: seen.extend(group["lr"] for group in optimizer.param_groups)
            )
            steps(one, 1)
            handle.remove()
            moved.append(seen)
        assert moved[0] == pytest.approx([0.25 * lr for lr in moved[1]])
        assert [g["lr"] for g in trial.optimizer.param_groups] == [g["lr"] for g in twin.optimizer.param_groups]
        assert trial.run.trainer.graft_lr() == pytest.approx(0.25 * twin.run.trainer.graft_lr())

    def test_are_lowered_again_and_go_along_into_checkpoints(self, tmp_path):
        trial = harmed(emergency_response="lower_lr")
        trial.session.after_epoch()
        wreck(trial, math.nan)
        trial.session.after_epoch()
        assert trial.run.trainer.lr_factor == 0.25
        trial.session.save(tmp_path)
        settings = config(emergency_response="lower_lr")
        fresh = Recipe(settings, epochs=24, policy=Script({1: [""]}, hidden=4)).build()
        fresh.session.load(tmp_path)
        assert fresh.run.trainer.lr_factor == 0.25


class TestStopping:
    def test_leaves_the_best_state_that_was_kept_in_the_model_and_on_disk(self, tmp_path):
        trial = alive(config_=config(emergency_response="stop"), directory=tmp_path)
        best = min([*trial.recovery.good, *trial.recovery.fallbacks], key=lambda one: one["select_loss"])
        kept, loss = host_of(best["body"].read()["model"]), best["select_loss"]
        wreck(trial, math.nan)
        with pytest.raises(
            esper.HarmedError, match=r"harmed at step \d+: the host's parameters are not finite"
        ) as told:
            trial.session.after_epoch()
        assert f"of step {best['step']} with a held-out loss of {loss:.4g}" in str(told.value)
        select = trial.run.judge.split.select
        assert trial.run.judge.measure().loss(select) == loss
        assert tree_digest(host_of(trial)) == tree_digest(kept)
        assert trial.events("emergency")[0]["response"] == "stop"
        fresh = Recipe(trial.run.config, epochs=24, policy=Script({1: [""]}, hidden=4)).build(directory=tmp_path)
        fresh.session.load(tmp_path / "checkpoints")
        assert tree_digest(host_of(fresh)) == tree_digest(host_of(trial))

    def test_comes_within_an_epoch_too_and_whoever_goes_on_may(self):
        trial = harmed(emergency_response="stop")
        with pytest.raises(esper.HarmedError, match="3 training losses in a row were not finite"):
            steps(trial, 4)
        trial.train(2)
        trial.session.finish()
        assert trial.run.host_is_finite

    def test_comes_also_where_there_is_nothing_to_go_back_to(self):
        trial = Recipe(config(emergency_response="stop"), policy=Script({})).build()
        wreck(trial, math.nan)
        with pytest.raises(esper.HarmedError, match="no good state was kept"):
            steps(trial, 4)
        assert trial.events("rollback") == []

    def test_comes_after_so_many_emergencies_in_a_row(self):
        trial = harmed(max_emergencies=3)
        for _ in range(2):
            trial.session.after_epoch()
            wreck(trial, math.nan)
        with pytest.raises(esper.HarmedError, match="harmed 3 times in a row, the last time at step"):
            trial.session.after_epoch()
        assert [event["response"] for event in trial.events("emergency")] == ["rollback", "rollback", "stop"]
        assert trial.run.host_is_finite

    def test_does_not_come_where_all_was_well_between_them(self):
        """The control of the test above."""
        trial = harmed(max_emergencies=3)
        for _ in range(3):
            trial.session.after_epoch()
            trial.train(1)
            wreck(trial, math.nan)
        assert [event["response"] for event in trial.events("emergency")] == ["rollback"] * 3

    def test_a_graft_alone_at_fault_is_no_reason_before_that(self):
        trial = alive(config_=config(max_emergencies=2))
        trial.session.germinate("2", "all", settings={"hidden": 4})
        trial.train(1)
        steps(trial, 2)
        blow_up(trial, "2")
        trial.session.after_epoch()
        assert trial.state("2") is State.CULLED


def host_of(source: Any) -> dict[str, torch.Tensor]:
    """Parameters of the toy host, of a run or of what was kept of one."""
    named = source.model.state_dict() if isinstance(source, Trial) else source
    return {name: named[name].clone() for name in toy.host().state_dict()}
