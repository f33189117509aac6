"""The grown run and its controls, from random weights and from trained ones."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Evaluation
from esper.evaluation.controls import Setting, host_on, static, train_new
from esper.evaluation.growing import growing
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import SCHEDULES, Recipe, batches, flops_per_step
from esper.kasmina.host.export import export
from esper.kasmina.host.wrapping import host_state_dict
from esper.tasks.weights import put_weights

SETTING = Setting(batch_size=16, seed=3, split_seed=5, recipes=(Recipe(1e-2, "cosine"),))
PACE = {"epochs": 6, "batch_size": 16, "lr": 1e-2, "schedule": "cosine", "seed": 3}


def _trained(task):
    """Weights of the host after some training."""
    torch.manual_seed(0)
    cost = flops_per_step(task.make_host(), next(batches(task, 16, 3)))
    model, _ = train_new(task, 1.0, 100 * cost, SETTING, Recipe(1e-2, "cosine"), LearningCurve(task, 5))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_a_run_begins_with_the_weights_that_it_was_given(task):
    weights = _trained(task)
    grown = growing(task, GrowthConfig(), **PACE, weights=weights)
    assert all(torch.equal(weights[name], value) for name, value in host_state_dict(grown.model).items())


def test_the_order_of_batches_does_not_depend_on_the_weights(task):
    runs = [growing(task, GrowthConfig(), **PACE, weights=weights) for weights in (None, _trained(task))]
    orders = [[batch[0] for batch in run.loader] for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))


def test_weights_that_do_not_fit_are_refused(task):
    with pytest.raises(ConfigError, match=r"the weights do not fit the host: missing: '0\.bias'"):
        growing(task, GrowthConfig(), **PACE, weights={})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_follows_the_schedule_that_was_named(schedule, task):
    run = growing(task, GrowthConfig(max_rounds=0), **PACE | {"schedule": schedule})
    used = []
    run.session._run.trainer._optimizer.stepping.register_step_pre_hook(
        lambda o, *_: used.append(o.param_groups[0]["lr"])
    )
    run.finish()
    steps = PACE["epochs"] * len(run.loader)
    assert used == pytest.approx([Recipe(1e-2, schedule).rate(step, steps) for step in range(steps)])


def test_a_run_may_be_judged_by_an_evaluation_of_ones_own(task):
    calls = []

    def evaluate(model):
        calls.append(model)
        return Evaluation(losses=torch.arange(50.0), correct=None)

    run = growing(task, GrowthConfig(max_rounds=0), **PACE, evaluate=evaluate)
    assert len(calls) == 2
    assert run.session._run.judge.num_samples == 50


def test_sunk_cost_the_host_goes_on_and_static_begins_anew(task):
    """All three get the same further FLOPs; only two of them what was spent before."""
    weights = _trained(task)
    grown = growing(task, GrowthConfig(), **PACE, weights=weights)
    grown.finish()
    further = grown.session.train_flops
    parameters = sum(parameter.numel() for parameter in export(grown.model).parameters())
    on, anew = host_on(task, further, SETTING, weights), static(task, further, parameters, SETTING)
    for row in (on, anew):
        assert row.train_flops == pytest.approx(further, rel=0.01)
    assert on.parameters == sum(value.numel() for value in weights.values())
    assert abs(anew.parameters / parameters - 1) <= 0.02
    assert on.curve["val_losses"][0] < host_on(task, further, SETTING).curve["val_losses"][0]


def test_the_host_trained_on_is_plain_training_from_the_weights(task):
    """A schedule that stands at zero leaves them as they are."""
    weights = _trained(task)
    still = replace(SETTING, recipes=(Recipe(0.0, "cosine"),))
    cost = flops_per_step(task.make_host(), next(batches(task, 16, 3)))
    model, flops = train_new(task, 1.0, 3 * cost, still, still.recipes[0], LearningCurve(task, 5), weights)
    assert flops == 3 * cost
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    other = task.make_host(width_factor=2.0)
    with pytest.raises(ConfigError, match="in the host"):
        put_weights(other, weights)


@pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning"
)
def test_compiled_runs_and_controls_end_as_eager_ones(task, monkeypatch):
    """By a compiler that rounds as eager mode does."""
    real, compiled = torch.compile, []

    def exactly(model, **how):
        compiled.append(model)
        return real(model, **how | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", exactly)
    ended = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        one = replace(task, is_compiled=is_compiled)
        run = growing(one, GrowthConfig(min_targets=0), **PACE)
        run.finish()
        ended.append((host_state_dict(run.model), host_on(one, 1_000_000, SETTING).test_loss))
    (weights, loss), (compiled_weights, compiled_loss) = ended
    assert loss == compiled_loss
    assert all(torch.equal(weights[name], value) for name, value in compiled_weights.items())
    assert len(compiled) == 2


class Branching(nn.Module):
    """Looks at a number in the midst of its forward, which a compiler cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.hidden(x)
        return self.head(h if h.sum().item() > 0 else 2 * h)


def test_a_host_that_cannot_be_compiled_is_refused_with_the_remedy(task):
    one = replace(task, make_host=Branching, is_compiled=True)
    with pytest.raises(ConfigError, match=r"torch cannot compile the host as a whole: .*without --compile"):
        growing(one, GrowthConfig(), **PACE)
