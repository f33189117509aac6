"""A perceptron of text grows as other hosts do: places by themselves, a round, an export, a run that is resumed."""

from dataclasses import replace

import pytest
import torch

import esper
from esper.evaluation.growing import Growing, growing
from esper.kasmina.host.anchoring import places
from esper.tasks.catalogue import load_task
from esper.tasks.task import Task
from esper.tasks.text_mlp import TextMLPHost
from tests.few import few
from tests.runtime.toy import Script
from tests.tasks.texts import write_sums

PACE = {"epochs": 8, "batch_size": 16, "lr": 1e-2, "schedule": "cosine", "seed": 0, "steps_per_epoch": 10}


@pytest.fixture
def task(tmp_path) -> Task:
    """A text that the narrow host learns less of than a wider one would."""
    task = load_task(f"text:{write_sums(tmp_path)}", 0, "mlp")
    return replace(task, make_host=TextMLPHost(task.num_classes, window=4, features=4, hidden=(3, 3)))


def _run(task: Task, **settings) -> Growing:
    config = esper.GrowthConfig(compare="steps", max_growth=20.0, round_fraction=0.25, **settings)
    policy = Script({1: ["perceptron", "perceptron.2"]}, hidden=16)
    return growing(task, config, **PACE, policy=policy)


def test_it_carries_seeds_at_its_layers_its_halves_and_around_it(task):
    model = esper.wrap(task.make_host(), example=task.train.x[:4])
    assert {place.layer_id: place.kind for place in places(model) if place.kind != "colony"} == {
        "embedding.vectors": "layer",
        "perceptron.0": "layer",
        "perceptron.2": "layer",
        "perceptron.4": "layer",
        "perceptron.0:perceptron.2": "span",
        "perceptron.2:perceptron.4": "span",
        "perceptron": "block",
    }
    assert {place.ports.layout for place in places(model) if place.kind != "colony"} == {"tokens"}


def test_the_heuristic_decides_without_error(task):
    config = esper.GrowthConfig(seed=3)
    run = growing(task, config, **PACE)
    run.finish()
    assert run.session.field_reports


def test_what_grew_is_exported_with_the_same_logits(task):
    run = _run(task)
    run.finish()
    assert "FOSSILIZED" in {report.outcome for report in run.session.field_reports}
    x = task.test.x[:8]
    plain = esper.export(run.model.eval())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), run.model(x))
    assert not any(type(module).__module__.startswith("esper.kasmina") for module in plain.modules())


@pytest.mark.parametrize("stop", few([1, 5], [5]))
def test_a_run_that_was_resumed_ends_with_the_same_bytes(task, tmp_path, stop):
    whole = _run(task)
    whole.finish()
    first = _run(task)
    for _ in range(stop):
        for batch in first.loader:
            first.session.step(batch)
        first.session.after_epoch()
    first.session.save(tmp_path / "saved")
    second = _run(task)
    second.session.load(tmp_path / "saved")
    second.finish()
    x = task.test.x[:8]
    with torch.no_grad():
        assert torch.equal(second.model(x), whole.model(x))
