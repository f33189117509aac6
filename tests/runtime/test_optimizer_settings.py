"""Settings of the optimizer are noted without copying what has not changed, and without waiting for rates."""

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from esper.runtime.training.optimizer_settings import Rates, SettingsNotes
from tests.few import few
from tests.runtime import toy
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import Recipe, Script, growing


def groups(**settings):
    return [{"params": [], "betas": (0.9, 0.999), "lr": 0.1, "foreach": None} | settings, {"params": [], "lr": 0.2}]


def test_settings_that_have_not_changed_are_one_object():
    notes, now = SettingsNotes(), groups(lr=torch.tensor(0.1))
    first = notes.take(now)
    assert notes.take(now) is first
    now[1]["lr"] = 0.3
    second = notes.take(now)
    assert (first[1]["lr"], second[1]["lr"]) == (0.2, 0.3)
    assert second[0]["lr"] is first[0]["lr"]
    assert "params" not in second[0]
    assert "foreach" not in second[0]


@pytest.mark.parametrize("name", ["lr", "betas"])
def test_a_tensor_is_noted_as_it_was_then(name):
    rate = torch.tensor(0.1)
    notes, now = SettingsNotes(), groups(**{name: rate if name == "lr" else (rate, 0.999)})
    first = notes.take(now)
    rate.fill_(0.5)
    second = notes.take(now)
    seen = [one[0][name] if name == "lr" else one[0][name][0] for one in (first, second)]
    assert [float(one) for one in seen] == [pytest.approx(0.1), 0.5]
    assert all(one is not rate for one in seen)


def test_settings_are_noted_while_a_window_remembers_them_and_only_then():
    trial = Recipe(growing(), policy=Script({1: [""]})).build()
    for epochs in (0, 2):
        trial.train(epochs)
        trial.run.trainer.train(next(toy.batches(9)))
        noted = trial.run.trainer.take_settings()
        assert (noted is None) == (trial.rounds.current is None) == (epochs == 0)
    assert len(trial.rounds.current.settings) == 10
    assert None not in trial.rounds.current.settings


def test_rates_of_the_host_are_those_of_the_step():
    rates = Rates()
    assert rates.of_last_step is None
    rates.note(groups(lr=torch.tensor(0.5)))
    assert rates.in_step == rates.of_last_step == [0.5, 0.2]


def with_tensor_rates(rate: float) -> Recipe:
    return Recipe(
        growing(keep_looks=(0.95,)),
        optimizer=lambda parameters: AdamW(parameters, lr=torch.tensor(rate), foreach=False),
        scheduler=lambda optimizer, steps: LambdaLR(optimizer, lambda step: 0.98**step),
    )


@pytest.mark.parametrize("point", few([7, 23, 66], [23]))
def test_a_run_by_rates_in_tensors_resumes_to_the_byte(point, tmp_path):
    recipe = with_tensor_rates(0.03)
    expected = whole(recipe)
    assert expected.events("arm_ended")
    cut(recipe, lambda trial: trial.session.step_count == point, tmp_path)
    assert_equal(resume(recipe, tmp_path), expected)
