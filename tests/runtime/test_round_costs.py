"""What a round costs: arms are paid from the twin's FLOPs, and those that are behind are given up halfway."""

import itertools
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from esper.runtime.flops import FlopMeter
from esper.runtime.judging import Judge
from esper.runtime.rounds import Round
from esper.runtime.run import Run
from esper.runtime.training import Trainer
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


class TestRace:
    """An arm that is behind one that has beaten the twin, when both are half over, is not trained to its end."""

    LAYERS = ("", "2", "0:2")

    def judged(self, **settings: Any) -> Trial:
        recipe = Recipe(growing(layers=self.LAYERS, **settings), policy=Script({1: list(self.LAYERS)}))
        return recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))

    def test_who_is_behind_is_given_up_and_the_same_one_is_adopted_at_less_cost(self):
        raced, whole = self.judged(), self.judged(race=False)
        given_up = [arm for arm in raced.events("arm_ended") if arm["given_up"]]
        assert given_up
        assert not any(arm["given_up"] for arm in whole.events("arm_ended"))
        assert raced.digest() == whole.digest()
        assert raced.session.train_flops < whole.session.train_flops
        full = {arm["arm"]: arm for arm in whole.events("arm_ended")}
        for arm in given_up:
            assert arm["steps"] == -(-full[arm["arm"]]["steps"] // 2)
            assert not arm["passed"]
            assert arm["twin_z"] is arm["select_loss"] is None
            assert arm["curve"]["train_losses"][:10] == full[arm["arm"]]["curve"]["train_losses"][:10]

    def test_only_behind_one_that_beat_the_twin(self):
        """Placebos never do: each of their arms is trained to its end, however far behind."""
        policy = Script({1: list(self.LAYERS)}, blueprint="placebo", hidden=4)
        recipe = Recipe(growing(layers=self.LAYERS), policy=policy)
        arms = recipe.build().train_until(lambda trial: bool(trial.events("round_ended"))).events("arm_ended")
        assert len(arms) == 3
        assert not any(arm["given_up"] or arm["passed"] for arm in arms)

    def lost(self, **settings: Any) -> Trial:
        policy = Script({1: list(self.LAYERS)}, blueprint="placebo", hidden=4)
        recipe = Recipe(growing(layers=self.LAYERS, compare="flops", gate_z=0.01, **settings), policy=policy)
        return recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))

    def test_after_two_arms_that_were_clearly_worse_the_others_are_not_tried(self):
        raced, whole = self.lost(), self.lost(race=False)
        assert [len(trial.events("arm_ended")) for trial in (raced, whole)] == [2, 3]
        assert all(arm["twin_z"] < -0.01 for arm in raced.events("arm_ended"))
        assert raced.session.train_flops < whole.session.train_flops
        (left_out,) = [one for one in raced.session.field_reports if one.outcome == "CANCELLED"]
        assert left_out.reason.startswith("not tried")
        assert left_out.flops == 0
        host = [name for name, _ in raced.model.named_parameters() if "_esper" not in name]
        theirs = dict(whole.model.named_parameters())
        assert all(parameter.equal(theirs[name]) for name, parameter in raced.model.named_parameters() if name in host)

    def test_a_round_in_which_one_was_better_goes_on(self):
        trial = Recipe(growing(layers=self.LAYERS), policy=Script({1: list(self.LAYERS)})).build()
        trial.train_until(lambda trial: trial.rounds.current is not None)
        now = trial.rounds.current
        now.beaten = 5
        assert trial.rounds._is_lost(now)
        now.best = {"lifecycle": 1, "loss": 1.0, "body": {}}
        assert not trial.rounds._is_lost(now)

    def test_the_best_by_select_and_gate_samples_together_is_adopted(self):
        trial = self.judged(race=False)
        split = trial.run.judge.split
        share = len(split.select) / (len(split.select) + len(split.gate))
        arms = {
            arm["lifecycle"]: share * arm["select_loss"] + (1 - share) * arm["gate_loss"]
            for arm in trial.events("arm_ended")
            if arm["passed"]
        }
        assert len(arms) > 1
        assert trial.events("round_ended")[0]["adopted"]["lifecycle"] == min(arms, key=arms.__getitem__)

    def test_a_seed_whose_arm_was_given_up_is_culled_and_its_flops_are_booked(self):
        trial = self.judged()
        arms = {arm["lifecycle"]: arm for arm in trial.events("arm_ended") if arm["given_up"]}
        for report in trial.session.field_reports:
            if report.lifecycle in arms:
                assert (report.outcome, report.reason) == ("CULLED", "lost_round")
                assert report.flops == arms[report.lifecycle]["arm_flops"] > 0
                assert "twin" not in report.gates

    @pytest.mark.parametrize(
        ("halfway", "lead", "behind"),
        [(1.0, None, False), (None, 1.0, False), (1.0, 1.0, False), (1.1, 1.0, True), (float("nan"), 1.0, True)],
    )
    def test_who_is_behind(self, halfway, lead, behind):
        now = Round(start={}, live=[], number=1, start_step=0, end_step=1, candidates=[], halfway=halfway, lead=lead)
        assert now.is_behind is behind


class TestCost:
    """Arms are paid from the twin's FLOPs, and FLOPs are torch's."""

    LAYERS = ("", "2", "0:2")

    def arms(self, compare: str, sizes: tuple[int, ...] = (16,)) -> tuple[Trial, list[dict[str, Any]]]:
        config = growing(layers=self.LAYERS, compare=compare, race=False)
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
        doing = {"probe": False, "judging": False}

        def counting(kind: str, original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if doing["probe"] or (kind == "judging" and not doing["judging"]):
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
        monkeypatch.setattr(FlopMeter, "cost", doing_it("probe", FlopMeter.cost))
        monkeypatch.setattr(Run, "measure", doing_it("judging", Run.measure))
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
