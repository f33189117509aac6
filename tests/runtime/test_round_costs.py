"""What a round costs: arms are paid from the twin's FLOPs, and no more are tried than it takes to decide."""

import itertools
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from esper.contracts.lifecycle import State
from esper.runtime.judging.evaluations import Evaluations
from esper.runtime.judging.judge import Judge
from esper.runtime.training.trainer import Trainer
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


class TestChoice:
    """The first candidate that beats the twin is adopted and no more are tried, or the best of all."""

    LAYERS = ("", "2", "0:2")

    def judged(self, **settings: Any) -> Trial:
        recipe = Recipe(growing(layers=self.LAYERS, **settings), policy=Script({1: list(self.LAYERS)}))
        return recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))

    def lost(self, **settings: Any) -> Trial:
        policy = Script({1: list(self.LAYERS)}, blueprint="placebo", hidden=4)
        recipe = Recipe(growing(layers=self.LAYERS, compare="flops", gate_z=0.01, **settings), policy=policy)
        return recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))

    def left_out(self, trial: Trial) -> dict[int, str]:
        """Candidates that were not tried, with the reason."""
        reports = [one for one in trial.session.field_reports if one.outcome == "CANCELLED"]
        assert all(one.flops == 0 for one in reports)
        return {one.lifecycle: one.reason for one in reports}

    def test_the_first_that_beats_the_twin_is_adopted_and_the_others_are_not_tried(self):
        first, best = self.judged(choice="first"), self.judged()
        everyone = best.events("arm_ended")
        passed = [arm["lifecycle"] for arm in everyone if arm["passed"]]
        assert len(everyone) == 3
        assert len(passed) > 1
        assert first.events("round_ended")[0]["adopted"]["lifecycle"] == passed[0]
        tried = first.events("arm_ended")
        assert [arm["lifecycle"] for arm in tried] == [arm["lifecycle"] for arm in everyone][: len(tried)]
        assert tried[-1]["lifecycle"] == passed[0]
        assert {arm["gain"] for arm in tried} <= {arm["gain"] for arm in everyone}
        assert first.session.train_flops < best.session.train_flops
        untried = {arm["lifecycle"] for arm in everyone} - {arm["lifecycle"] for arm in tried}
        assert self.left_out(first) == dict.fromkeys(untried, "not tried: one before it beat the twin")

    def test_those_that_were_not_tried_may_be_offered_again_after_an_epoch(self):
        """They have not lost: there is no embargo."""
        trial = self.judged(choice="first", embargo_epochs=50)
        ended = trial.session.epoch
        trial.train_until(lambda trial: trial.session.epoch > ended)
        left_out = [one.layer_id for one in trial.session.field_reports if one.outcome == "CANCELLED"]
        assert left_out
        for layer_id in left_out:
            lifecycle = trial.run.places[layer_id].state.lifecycle
            assert {State(code) for code in lifecycle.tolist()} == {State.DORMANT}

    def test_after_two_arms_that_were_no_better_the_others_are_not_tried(self):
        first, best = self.lost(choice="first"), self.lost()
        assert [len(trial.events("arm_ended")) for trial in (first, best)] == [2, 3]
        assert all(arm["gain"] <= 0 for arm in first.events("arm_ended"))
        assert first.session.train_flops < best.session.train_flops
        (why,) = self.left_out(first).values()
        assert why == "not tried: those before it were no better than the twin"
        host = [name for name, _ in first.model.named_parameters() if "_esper" not in name]
        theirs = dict(best.model.named_parameters())
        assert all(parameter.equal(theirs[name]) for name, parameter in first.model.named_parameters() if name in host)

    def test_one_that_is_no_better_does_not_end_the_round(self):
        """Nor do others that gain, but not enough to be adopted."""
        trial = self.judged(choice="first", gate_z=1e8)
        arms = trial.events("arm_ended")
        assert [arm["passed"] for arm in arms] == [False] * 3
        assert sum(arm["gain"] <= 0 for arm in arms[:2]) == 1
        assert trial.events("round_ended")[0]["adopted"] is None
        assert not self.left_out(trial)

    def test_the_best_is_that_by_select_and_gate_samples_together(self):
        trial = self.judged()
        split = trial.run.judge.split
        share = len(split.select) / (len(split.select) + len(split.gate))
        arms = {
            arm["lifecycle"]: share * arm["select_loss"] + (1 - share) * arm["gate_loss"]
            for arm in trial.events("arm_ended")
            if arm["passed"]
        }
        assert len(arms) > 1
        assert trial.events("round_ended")[0]["adopted"]["lifecycle"] == min(arms, key=arms.__getitem__)


class TestCost:
    """Arms are paid from the twin's FLOPs, and FLOPs are torch's."""

    LAYERS = ("", "2", "0:2")

    def arms(self, compare: str, sizes: tuple[int, ...] = (16,)) -> tuple[Trial, list[dict[str, Any]]]:
        config = growing(layers=self.LAYERS, compare=compare)
        recipe = Recipe(config, policy=Script({1: list(self.LAYERS)}))
        trial = recipe.build()
        size = itertools.cycle(sizes)
        for epoch in range(6):
            for x, y in toy.batches(epoch):
                n = next(size)
                trial.session.step((x[:n], y[:n]))
            trial.session.after_epoch()
        arms = trial.events("arm_ended")
        assert len(arms) == 3
        return trial, arms

    @pytest.mark.parametrize("sizes", [(16,), (16, 4), (4, 16, 16)])
    def test_an_arm_takes_as_many_steps_as_the_twins_flops_pay_for(self, sizes):
        trial, arms = self.arms("flops", sizes)
        begun = trial.events("round_begun")[0]
        bare = FlopCounterMode(display=False)
        paid = 0
        window = [size for size, _ in zip(itertools.cycle(sizes), range(begun["end_step"]), strict=False)]
        for n in window[begun["step"] :]:
            with bare:
                toy.loss(toy.host(), (toy.DATA.x[:n], toy.DATA.y[:n])).backward()
            paid += bare.get_total_flops()
        for arm in arms:
            a_step = 2 * arm["arm_flops"] / arm["steps"] if len(sizes) > 1 else arm["arm_flops"] / arm["steps"]
            assert paid - a_step < arm["arm_flops"] <= paid
            assert 0 < arm["steps"] < begun["end_step"] - begun["step"]

    def test_or_as_many_steps_as_the_twin(self):
        trial, arms = self.arms("steps")
        begun = trial.events("round_begun")[0]
        assert {arm["steps"] for arm in arms} == {begun["end_step"] - begun["step"]}

    @pytest.mark.parametrize("accumulate", [3, 4, 7])
    def test_an_arm_ends_in_the_same_phase_of_accumulation_as_the_run(self, accumulate):
        """What has gathered in its gradients then goes on where the run's would have."""
        recipe = Recipe(growing(compare="flops"), session={"accumulate": accumulate})
        trial = recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))
        begun, arm = trial.events("round_begun")[0], trial.events("arm_ended")[0]
        assert 0 < arm["steps"] < 40
        assert (arm["steps"] - (begun["end_step"] - begun["step"])) % accumulate == 0

    def test_all_flops_of_a_run_are_booked_as_torch_counts_them(self, monkeypatch):
        """Training, arms, blend-out and judging, counted once more, call by call."""
        counted = {"training": 0, "judging": 0}
        doing = {"judging": False}

        def counting(kind: str, original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if kind == "judging" and not doing["judging"]:
                    return original(*args, **kwargs)
                with FlopCounterMode(display=False) as counter:
                    result = original(*args, **kwargs)
                counted[kind] += counter.get_total_flops()
                return result

            return call

        def doing_it(what: str, original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                doing[what] = True
                try:
                    return original(*args, **kwargs)
                finally:
                    doing[what] = False

            return call

        monkeypatch.setattr(Trainer, "train", counting("training", Trainer.train))
        monkeypatch.setattr(Judge, "measure", counting("judging", Judge.measure))
        monkeypatch.setattr(Evaluations, "measure", doing_it("judging", Evaluations.measure))
        recipe = Recipe(
            growing(layers=self.LAYERS, compare="flops", keep_looks=(0.6, 0.8)),
            policy=Script({1: list(self.LAYERS), 6: ["2"]}),
        )
        trial = recipe.build()
        trial.train()
        trial.session.finish()
        books = trial.run.books
        assert counted == {"training": books.run_flops + books.arm_flops, "judging": books.judging_flops}
        assert trial.session.train_flops == sum(counted.values())
        assert trial.session.probe_flops == trial.session.train_flops - books.run_flops
        assert sum(arm["arm_flops"] for arm in trial.events("arm_ended")) == books.arm_flops > 0
        assert sum(report.flops for report in trial.session.field_reports) == books.arm_flops
