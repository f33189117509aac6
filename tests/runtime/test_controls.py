"""Growth with controls that must not be kept: a judge that keeps them cannot be trusted.

On the digits, with the defaults but for the blueprint; a few runs of each kind, and twelve with ``make test-long``.
``make bench`` repeats it with more.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import esper
from esper.contracts.reports import FieldReport, Observation
from esper.evaluation.growing import Growing, growing
from esper.evaluation.row import per_sample
from esper.kasmina.places.variation import Variation
from esper.runtime.judging.gates import GateResult
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.trying.arms import Verdict, by_the_grow_gate
from esper.tamiyo.proposal import germination, num_candidates, places_to_try
from esper.tamiyo.selection import selection_named
from esper.tamiyo.shortlist import shortlist
from esper.tamiyo.timing import may_grow
from esper.tasks.digits import digits
from esper.tasks.mlp import MLPHost

FEW, ALL = range(1), range(12)
EPOCHS = 30


class Insistent:
    """Tries twice, at 10 and 40 % of the run, however well it gets on: what is tested is the judge."""

    def __init__(self, config: esper.GrowthConfig) -> None:
        self._config, self._select = config, selection_named(config.selection)

    def decide(self, seen: Observation) -> list[esper.Command]:
        config = self._config
        if not may_grow(seen, config) or seen.step / seen.planned_steps < (0.10, 0.40)[seen.rounds_done]:
            return []
        chosen = shortlist(places_to_try(seen, config), num_candidates(seen, config), among=seen.places)
        return [germination(candidate, seen, config, self._select, "its time has come") for candidate in chosen]


def grown(blueprint: str, seed: int, verdict: Verdict = by_the_grow_gate, **settings: Any) -> list[FieldReport]:
    """What became of the grafts of a run that has one blueprint on offer, judged so."""
    task = digits(seed)
    torch.manual_seed(seed)
    config = esper.GrowthConfig(blueprints=(blueprint,), min_targets=0, **settings)
    model = esper.wrap(task.make_host(), config)
    optimizer = AdamW(model.parameters(), lr=5e-3)
    loader = esper.BatchLoader(task.train, 32, seed)
    steps = EPOCHS * len(loader)

    def evaluate(model: nn.Module) -> esper.Evaluation:
        return esper.Evaluation(*per_sample(model, task.held_out))

    session = esper.Session(
        model,
        optimizer,
        policy=Insistent(config),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=evaluate,
        planned_steps=steps,
        scheduler=CosineAnnealingLR(optimizer, steps),
    )
    session._growth.rounds.arms.verdict = verdict
    for _ in range(EPOCHS):
        for batch in loader:
            session.step(batch)
        session.after_epoch()
    session.finish()
    return session.field_reports


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def kept(reports: list[FieldReport]) -> bool:
    return any(report.outcome == "FOSSILIZED" for report in reports)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("blueprint", ["random_frozen", "placebo"])
@pytest.mark.parametrize(
    "seed", [*FEW, *(pytest.param(seed, marks=pytest.mark.long) for seed in ALL if seed not in FEW)]
)
def test_no_control_is_kept(blueprint, seed):
    reports = grown(blueprint, seed)
    assert len(reports) >= 4
    assert not kept(reports)


def by_knock_out(run: Run, one: Lifecycle) -> GateResult:
    """Ask only whether the run is worse without the graft, as one would without a twin; and put that on record."""
    z = run.evaluations.measure().gain_over(run.evaluations.ablated(one), run.judge.split.gate).z
    one.gates["twin"] |= {"twin_z": z, "has_metric": False, "variation": 1.0}
    return GateResult(z is not None and z >= run.config.gate_z)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("seeds", "at_least"), [(FEW, 1), pytest.param(ALL, 3, marks=pytest.mark.long)])
def test_what_is_trained_is_kept_now_and_then(seeds, at_least):
    """The tests above would be idle if nothing were ever kept."""
    assert sum(kept(grown("bottleneck_mlp", seed)) for seed in seeds) >= at_least


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("seeds", "at_least"), [(FEW, 1), (ALL, 3)])
@pytest.mark.long
def test_a_plain_knock_out_keeps_what_is_random_and_frozen(seeds, at_least):
    """The control of the control: the test above can see a judge that is fooled.

    Some of what it adopts harms the run so much that it would be an emergency; that is looked away from.
    """
    settings = {"choice": "best", "emergency_rollback_threshold": 100.0}
    fooled = sum(kept(grown("random_frozen", seed, by_knock_out, **settings)) for seed in seeds)
    assert fooled >= at_least


def narrow_run(width: int, number: int, **settings: Any) -> Growing:
    """A run on the digits that has not begun, of a host of so many hidden units: a control of ``benchmarks.growth``."""
    task = replace(digits(20_000 + number), make_host=MLPHost((64, width, width, 10)))
    config = esper.GrowthConfig(seed=10_000 + number, min_targets=0, **settings)
    return growing(task, config, epochs=60, batch_size=32, lr=5e-3, schedule="cosine", seed=10_000 + number)


class TestAnOffset:
    """A placebo that beats the twin: it learns one offset for all samples, faster than the host's own biases do."""

    @staticmethod
    def first_arm() -> dict[str, Any]:
        run = narrow_run(6, 31, blueprints=("placebo",))
        while not (arms := [event for event in run.session.events if event["event"] == "arm_ended"]):
            for batch in run.loader:
                run.session.step(batch)
            run.session.after_epoch()
        return arms[0]

    @pytest.mark.usefixtures("one_thread")
    def test_is_refused(self):
        arm = self.first_arm()
        assert arm["twin_z"] > 2.33
        assert arm["metric_gain"] > 0
        assert arm["variation"] < 0.02
        assert not arm["passed"]
        assert arm["verdict"] == f"variation is {arm['variation']:.4g}, below 0.05"

    @pytest.mark.usefixtures("one_thread")
    def test_would_be_adopted_if_nobody_asked(self, monkeypatch):
        monkeypatch.setattr(Variation, "share", 1.0)
        assert self.first_arm()["passed"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.long
@pytest.mark.parametrize("compare", ["flops", "steps"])
@pytest.mark.parametrize("numbers", [(30,), (30, 74, 88)])
def test_only_the_flops_that_it_costs_refuse_what_is_random_and_frozen(numbers, compare):
    """It is a few more features, and at equal steps a host of four units is better off with them."""
    is_kept = []
    for number in numbers:
        run = narrow_run(4, number, blueprints=("random_frozen",), compare=compare)
        run.finish()
        is_kept.append(kept(run.session.field_reports))
    assert any(is_kept) == (compare == "steps")
