"""Gates judge growth on a quantity and on several labels: a host that is too narrow grows, and the metric rises."""

import pytest
import torch

from esper.contracts.config import GrowthConfig
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.growing import growing
from esper.evaluation.row import measured
from esper.evaluation.training import Recipe
from esper.kasmina.host.export import export
from esper.tasks.mlp import MLPHost
from esper.tasks.task import METRICS, Samples, Scale, Task
from tests.few import few

CONFIG = GrowthConfig(
    max_rounds=1, compare="steps", capacity_per_round=8.0, max_growth=16.0, blueprints=["bottleneck_mlp"]
)
RECIPE = Recipe(1e-2, "cosine")


def _disc(kind) -> Task:
    """The squared distance from the origin; or whether a point is within a disc, and in which quadrants."""
    x = torch.rand(1400, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    square = x.square().sum(1)
    labels = torch.stack([square < 0.6, x.prod(1) > 0], 1).float()
    y = (square - square.mean()) / square.std() if kind == "regression" else labels
    parts = (Samples(x[rows], y[rows]) for rows in torch.arange(1400).split([400, 800, 200]))
    outputs = ("square",) if kind == "regression" else ("disc", "quadrant")
    host = MLPHost((2, 2, len(outputs)))
    scale = Scale(float(square.mean()), float(square.std())) if kind == "regression" else None
    return Task("disc", *parts, host, outputs, (2,), kind=kind, metric=METRICS[kind], scale=scale)


@pytest.mark.parametrize(("kind", "further"), few([("regression", "RMSE"), ("multilabel", "macro F1")], ["regression"]))
def test_a_narrow_host_grows_and_beats_its_controls(kind, further):
    task = _disc(kind)
    run = growing(task, CONFIG, epochs=30, batch_size=32, lr=RECIPE.lr, schedule=RECIPE.schedule, seed=0)
    run.finish()
    assert "FOSSILIZED" in [report.outcome for report in run.session.field_reports]
    flops = run.session.train_flops
    grown = measured(export(run.model), task, 0, train_flops=flops, seconds=1.0, lr=RECIPE.lr, schedule=RECIPE.schedule)
    last = [event for event in run.session.events if event["event"] == "epoch"][-1]
    assert grown.val_metric == pytest.approx(last["val_metric"], abs=1e-4)
    setting = Setting(batch_size=32, seed=0, split_seed=0, recipes=(RECIPE,))
    on, wide = host_on(task, flops, setting), static(task, flops, grown.parameters, setting)
    assert grown.test_metric > on.test_metric + 0.1
    assert wide.curve["val_metrics"][-1] == pytest.approx(wide.val_metric, abs=1e-6)
    assert list(grown.test_further) == list(on.test_further) == [further]
