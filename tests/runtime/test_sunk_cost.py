"""A session around a model that is trained already: it grows, is exported, and resumes to the byte."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR, OneCycleLR

import esper
from esper.contracts.lifecycle import State
from tests.few import few
from tests.runtime import toy
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import DATA, STEPS_PER_EPOCH, Recipe, Script, growing

PEAK, LOW = 0.03, 0.002


def _train(model: nn.Module, lr: float, epochs: int) -> nn.Module:
    """By the user's own loop, without Esper."""
    optimizer = AdamW(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for batch in toy.batches(epoch):
            optimizer.zero_grad()
            toy.loss(model, batch).backward()
            optimizer.step()
    return model


TRAINED = _train(toy.host(), PEAK, 30)


def trained() -> nn.Module:
    """A host that has been trained until it stalls."""
    torch.manual_seed(1)
    return copy.deepcopy(TRAINED)


def select_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(toy.evaluate(model).losses.mean())


def recipe(scheduler, **settings) -> Recipe:
    """Twelve further epochs at a rate that is small from the start; the peak that the host once had is given."""
    return Recipe(
        growing(peak_lr=PEAK, keep_looks=(0.7,), **settings),
        model=trained,
        optimizer=lambda parameters: AdamW(parameters, lr=LOW),
        scheduler=scheduler,
        policy=Script({1: [""]}),
    )


RATES = {"constant": None, "decaying": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, total_iters=steps)}
REWARM = {"": {}, "re-warmed": {"rewarm": 0.5}}


@pytest.mark.parametrize(
    ("rate", "rewarm"),
    few([(rate, rewarm) for rate in RATES for rewarm in REWARM], [("constant", ""), ("decaying", "re-warmed")]),
)
def test_it_grows_and_ends_better_than_the_same_model_trained_on(rate, rewarm):
    made = recipe(RATES[rate], **REWARM[rewarm])
    grown = whole(made)
    made.policy = Script({})
    trained_on = whole(made)
    assert [one.outcome for one in grown.session.field_reports] == [State.FOSSILIZED.name]
    assert not trained_on.session.field_reports
    assert select_loss(grown.model) < 0.9 * select_loss(trained_on.model)


def test_before_anything_grows_it_is_the_trained_model():
    trial = recipe(None).build()
    model = trained()
    assert torch.equal(trial.model(DATA.held_x), model(DATA.held_x))
    trial.train(1)
    reference = _train(model, LOW, 1)
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in _host(trial.model).items())


def test_its_grafts_train_at_the_peak_that_was_given():
    """Negative control: without it they would train at the small rate that was seen."""
    rates = {}
    for peak in (PEAK, None):
        made = recipe(None)
        made.config = growing(peak_lr=peak)
        rates[peak] = made.build().train(2).run.trainer.graft_lr()
    assert rates[PEAK] == pytest.approx(1.5 * PEAK)
    assert rates[None] == pytest.approx(1.5 * LOW)


def test_grafts_train_at_the_peak_to_which_one_cycle_is_still_to_rise():
    """From birth on, as if it had been named; and nothing counts as decayed on the way up."""

    def rising(optimizer, steps):
        return OneCycleLR(optimizer, PEAK, total_steps=steps + 1, pct_start=0.6)

    ended = {}
    for peak in (PEAK, None):
        trial = Recipe(growing(peak_lr=peak), scheduler=rising).build().train(1)
        assert trial.run.trainer.lr < PEAK / 10
        assert trial.run.trainer.has_decayed is (peak is not None)
        assert trial.run.trainer.graft_lr() == pytest.approx(1.5 * PEAK)
        (ended[peak],) = trial.train(6).events("arm_ended")
    assert ended[None]["gain"] == ended[PEAK]["gain"] > 0


def test_what_has_grown_is_exported_without_esper():
    trial = whole(recipe(RATES["decaying"], rewarm=0.5))
    plain = esper.export(trial.model)
    assert not any(type(module).__module__.startswith("esper") for module in plain.modules())
    plain.eval()
    trial.model.eval()
    torch.testing.assert_close(plain(DATA.held_x), trial.model(DATA.held_x))
    assert select_loss(plain) < 0.9 * select_loss(trained())


@pytest.mark.parametrize("rewarm", REWARM)
@pytest.mark.parametrize("point", few([STEPS_PER_EPOCH + 3, 5 * STEPS_PER_EPOCH + 4, 90], [90]))
def test_it_resumes_to_the_byte(point, rewarm, tmp_path):
    made = recipe(RATES["decaying"], **REWARM[rewarm])
    cut(made, lambda trial: trial.session.step_count == point, tmp_path)
    assert_equal(resume(made, tmp_path), whole(made))


def _host(model: nn.Module) -> dict[str, torch.Tensor]:
    return esper.host_state_dict(model)
