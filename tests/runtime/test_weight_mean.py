"""The mean of the weights over the last steps, by which twin and arms are judged."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.runtime.judging.weight_mean import POINTS, TAIL, WeightMean, batch_norms
from tests.kasmina.growing import grow, place_of
from tests.runtime import toy
from tests.runtime.toy import Recipe, growing


def host() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape))


@pytest.mark.parametrize("steps", [1, 2, 7, 39, 40, 41, 300])
def test_it_is_the_mean_of_at_most_ten_points_of_the_last_quarter_the_last_step_among_them(steps):
    model, mean = host(), WeightMean()
    taken, before = [], 0
    for done in range(1, steps + 1):
        move(model)
        mean.after_step(model, done, steps)
        if mean.count > before:
            taken.append((done, model[0].weight.detach().clone()))
        before = mean.count
    points = [done for done, _ in taken]
    assert points[-1] == steps
    assert len(points) <= POINTS
    assert points[0] > steps - max(1, TAIL * steps)
    assert len({second - first for first, second in itertools.pairwise(points)}) <= 1
    expected = torch.stack([weight for _, weight in taken]).mean(0)
    torch.testing.assert_close(mean.tensors["0.weight"], expected)


def test_live_grafts_are_averaged_and_what_seeds_know_is_not():
    torch.manual_seed(0)
    model = esper.wrap(host(), esper.GrowthConfig(layers=[""]))
    grow(place_of(model, ""), "all")
    mean = WeightMean()
    mean.after_step(model, 1, 1)
    (slots,) = [tensor for name, tensor in mean.tensors.items() if "_esper" in name]
    assert slots.equal(place_of(model, "").arena.slots)


def test_half_precision_is_averaged_in_full():
    """Ten small steps of which bfloat16 would lose every one."""
    model, mean = nn.Linear(1, 1).to(torch.bfloat16), WeightMean()
    for done in range(10):
        nn.init.constant_(model.weight, 256.0 + 2 * (done % 2))
        mean.after_step(model, 31 + done, 40)
    assert mean.count == 10
    assert mean.tensors["weight"].dtype == torch.float32
    assert mean.tensors["weight"].item() == pytest.approx(257.0)


def test_the_weights_come_back_also_after_an_error():
    model, mean = host(), WeightMean()
    mean.after_step(model, 1, 1)
    move(model)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail() -> None:
        with mean.in_place_of(model):
            assert not torch.equal(model[0].weight, own["0.weight"])
            torch.testing.assert_close(model[0].weight, mean.tensors["0.weight"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_without_a_point_the_model_keeps_its_own():
    model = host()
    own = model[0].weight.clone()
    with WeightMean().in_place_of(model):
        assert torch.equal(model[0].weight, own)


class TestBatchNorms:
    """Statistics along the way are not those of the mean weights."""

    @staticmethod
    def at_the_end_of_its_window(**session: Any) -> toy.Trial:
        recipe = Recipe(growing(), model=lambda: toy.host(batch_norm=True, dropout=0.3), session=session)
        trial = recipe.build().train_until(lambda trial: trial.rounds.current is not None)
        before = trial.rounds.current.end_step - 1
        return trial.train_until(lambda trial: trial.session.step_count == before)

    def test_they_are_taken_anew_for_the_mean_and_come_back(self):
        trial = self.at_the_end_of_its_window()
        run, now = trial.run, trial.rounds.current
        norms = batch_norms(trial.model)
        assert norms
        before, seen = trial.digest(), {}
        random = torch.get_rng_state()
        measure = run.judge.measure

        def noting():
            seen["mean"], seen["momentum"] = norms[0].running_mean.clone(), norms[0].momentum
            return measure()

        run.judge.measure = noting
        run.evaluations.measure_mean(now.run_mean, now.batches)
        assert torch.equal(torch.get_rng_state(), random)
        expected = toy.host(batch_norm=True, dropout=0.0)
        names = {name: tensor for name, tensor in now.run_mean.tensors.items() if "_esper" not in name}
        expected.load_state_dict(names, strict=False)
        (norm,) = [module for module in expected.modules() if isinstance(module, torch.nn.BatchNorm1d)][:1]
        norm.momentum = None
        norm.reset_running_stats()
        with torch.no_grad():
            for x, _ in now.batches[-POINTS:]:
                expected.train()(x)
        torch.testing.assert_close(seen["mean"], norm.running_mean)
        assert seen["momentum"] == 0.1
        assert trial.digest() == before
        assert trial.model.training
        assert all(one.training for one in norms)

    def test_what_the_passes_cost_is_booked(self):
        trial = self.at_the_end_of_its_window()
        run, now = trial.run, trial.rounds.current
        run.evaluations.measure()
        spent = [run.books.judging_flops]
        run.evaluations.measure()
        spent.append(run.books.judging_flops)
        run.evaluations.measure_mean(now.run_mean, now.batches)
        spent.append(run.books.judging_flops)
        assert spent[2] - spent[1] > spent[1] - spent[0]

    def test_in_a_loop_of_ones_own_such_a_model_is_judged_as_it_is(self):
        """Nobody can make its forward passes there."""

        def train_step(batch):
            loss = toy.loss(trial.model, batch)
            loss.backward()
            trial.optimizer.step()
            trial.optimizer.zero_grad()
            return loss.detach()

        recipe = Recipe(growing(), model=lambda: toy.host(batch_norm=True), scheduler=None)
        trial = recipe.build(loss=None, train_step=train_step)
        for epoch in range(3):
            for batch in toy.batches(epoch):
                trial.session.after_step(batch, train_step(batch))
            trial.session.after_epoch()
        run, now = trial.run, trial.rounds.current
        assert now.run_mean.count == 0  # the window's last quarter has not come yet
        now.run_mean.after_step(trial.model, 1, 1)
        move(trial.model)
        assert torch.equal(
            run.evaluations.measure_mean(now.run_mean, now.batches).losses, run.evaluations.measure().losses
        )


class TestInARound:
    """Both sides are judged by it; what is adopted is the arm as it is."""

    @staticmethod
    def judged() -> toy.Trial:
        return Recipe(growing()).build().train_until(lambda trial: bool(trial.events("round_ended")))

    def test_the_verdict_is_about_the_mean(self, monkeypatch):
        (arm,) = self.judged().events("arm_ended")
        monkeypatch.setattr(WeightMean, "after_step", lambda *_: None)
        (last,) = self.judged().events("arm_ended")
        assert arm["twin_gate_loss"] != last["twin_gate_loss"]
        assert arm["gate_loss"] != last["gate_loss"]

    def test_but_the_adopted_bytes_are_not(self, monkeypatch):
        averaged = self.judged()
        assert averaged.events("round_ended")[0]["adopted"]
        monkeypatch.setattr(WeightMean, "after_step", lambda *_: None)
        assert averaged.digest() == self.judged().digest()

    def test_the_loss_to_recover_from_is_that_of_the_run_itself(self):
        """The mean's would be lower, and a run that comes back to where it was would seem not to have recovered."""
        trial = self.judged()
        fallback = trial.recovery.fallbacks[-1]
        (arm,) = trial.events("arm_ended")
        assert fallback["select_loss"] != arm["twin_select_loss"]
        end = trial.events("round_begun")[0]["end_step"]
        assert trial.session.step_count == end
