"""An arm takes fewer steps than the run; where more of them no longer help, that alone is no reason to adopt it."""

import math
from typing import Any

import pytest
import torch

from esper.checkpoint import store
from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Evaluation
from esper.runtime.judging.judge import Measurement
from esper.runtime.judging.weight_mean import MARKS, TAIL, WeightMean, marks
from esper.runtime.saved import upgraded
from esper.runtime.trying import rounds
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


class TestMarks:
    @pytest.mark.parametrize("steps", [1, 2, 3, 7, 40, 41, 480, 999])
    def test_each_begins_to_gather_where_the_one_before_it_ends(self, steps):
        found, mean, gathered = marks(steps), WeightMean(), []
        model = torch.nn.Linear(1, 1)
        for done in range(1, steps + 1):
            end = next(mark for mark in found if mark >= done)
            before = mean.count
            mean.after_step(model, done, end)
            gathered += [(done, end)] * (mean.count - before)
        assert found[-1] == steps
        assert len(found) <= MARKS
        assert {end for _, end in gathered} == set(found)
        for mark in found:
            for earlier in [mark - max(1, int(TAIL * mark))] * (mark > found[0]):
                assert found[found.index(mark) - 1] == earlier
                assert min(done for done, end in gathered if end == mark) > earlier

    def test_they_lie_at_three_quarters_of_the_next(self):
        assert marks(480) == [203, 270, 360, 480]


def moved(model: torch.nn.Module) -> Evaluation:
    """Held-out samples on which every step of the host does harm: their losses are how far it has come from its start,
    and some noise.
    """
    model(toy.DATA.held_x)
    distance = (model[0].weight - toy.host()[0].weight).norm()
    noise = torch.sin(1e4 * distance * torch.arange(1, 301))
    return Evaluation(distance + 0.1 * noise)


def judged(**settings: Any) -> Trial:
    """A trial after a round at equal FLOPs, in which more steps do harm."""
    policy = Script({1: [""]}, blueprint="random_frozen", hidden=1)
    trial = Recipe(growing(compare="flops", **settings), policy=policy).build(evaluate=moved)
    return trial.train_until(lambda trial: bool(trial.events("round_ended")))


class TestAnArmThatWinsByHavingFewerSteps:
    def test_is_refused(self):
        (arm,) = judged().events("arm_ended")
        assert arm["steps"] == 33
        assert not arm["passed"]
        assert arm["verdict"].endswith("below 2.33, against the run as it was after 18 of its 40 steps")

    def test_would_be_adopted_if_it_were_judged_at_the_end_alone(self, monkeypatch):
        """The control."""
        monkeypatch.setattr(rounds, "marks", lambda steps: [steps])
        (arm,) = judged().events("arm_ended")
        assert (arm["passed"], arm["verdict"]) == (True, "passed")


class TestLooks:
    """Back from the end of the window, as long as the run stood better there."""

    @staticmethod
    def at_the_end_of_its_window(config: GrowthConfig) -> Trial:
        trial = Recipe(config).build()
        trial.rounds.judge = lambda: None
        return trial.train_until(lambda trial: trial.rounds.is_due)

    @pytest.mark.parametrize(
        ("losses", "stood", "looked"),
        [
            ([2.0, 3.0, 1.0, 1.0], 40, 2),
            ([2.0, 2.0, 1.0, 1.0], 40, 2),
            ([2.0, 1.0, 3.0, 0.0], 30, 3),
            ([2.0, 1.5, 1.0, 0.5], 18, 4),
            ([2.0, math.nan, 1.0, 0.5], 40, 2),
        ],
    )
    def test_end_where_it_did_not(self, losses, stood, looked):
        trial, left = self.at_the_end_of_its_window(growing(compare="flops")), iter(losses)
        trial.run.evaluations.measure_mean = lambda mean, batches: Measurement(
            torch.full((300,), next(left), dtype=torch.float64), None, None
        )
        now = trial.rounds.current
        trial.rounds._measure_twin(now)
        assert (now.twin_steps, now.twin.loss(trial.run.judge.split.gate)) == (
            stood,
            losses[marks(40)[::-1].index(stood)],
        )
        assert len([*left]) == len(losses) - looked
        assert now.marks == {}

    def test_there_is_one_at_equal_steps(self):
        trial = self.at_the_end_of_its_window(growing())
        assert trial.rounds.current.marks == {}

    def test_they_are_booked(self):
        """Each is an evaluation of the held-out samples; the host is a perceptron of three layers."""
        trial = self.at_the_end_of_its_window(growing(compare="flops"))
        now, before = trial.rounds.current, trial.run.books.judging_flops
        trial.rounds._measure_twin(now)
        passes = len(toy.DATA.held_x) * 2 * (toy.FEATURES * 2 + 2 * toy.CLASSES)
        assert trial.run.books.judging_flops - before in {count * passes for count in (2, 3, 4)}


def test_an_arm_is_compared_with_what_the_run_was_at_the_mark():
    """To the byte: the mean of the weights of a run that never grows, up to there."""
    (arm,) = judged().events("arm_ended")
    bare, mean, begun = Recipe(growing(), policy=Script({})).build(evaluate=moved).train(1), WeightMean(), 10

    def is_over(trial: Trial) -> bool:
        mean.after_step(trial.model, trial.session.step_count - begun, 18)
        return trial.session.step_count == begun + 18

    bare.train_until(is_over)
    with mean.in_place_of(bare.model):
        assert arm["twin_gate_loss"] == bare.run.judge.measure().loss(bare.run.judge.split.gate)


def test_a_round_in_a_checkpoint_of_format_8_has_none(tmp_path):
    """What it has gathered so far is of the end of its window; it is judged by that, as it was then."""
    trial = Recipe(growing(compare="flops")).build().train_until(lambda trial: trial.session.step_count == 45)
    trial.session.save(tmp_path)
    state = store.read(tmp_path)
    assert state["growth"]["round"].pop("marks").keys() == {18, 23, 30}
    del state["growth"]["round"]["twin_steps"]
    assert upgraded(state, 8)["growth"]["round"].items() >= {"marks": {}, "twin_steps": None}.items()
