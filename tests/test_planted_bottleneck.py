"""A bottleneck is planted in a real network that trains for a while: the shortlist names it."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from esper.contracts.reports import PlaceReport
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import traced
from esper.tamiyo.shortlist import Candidate, shortlist

TRIALS, STEPS, BATCH, FEATURES, CLASSES = 100, 12, 64, 12, 5
WIDTH, DEPTH, SEEDS = 64, 6, 8

Reports = list[PlaceReport]


def chain(widths: list[int]) -> nn.Sequential:
    """With He initialisation: torch's own lets seven layers hardly pass a signal."""
    steps: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        steps += [layer, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def trained(model: nn.Sequential, generator: torch.Generator, after_step: Callable[[], None] = lambda: None) -> Reports:
    """What the seeds report after some steps on a random teacher's labels."""
    esper.wrap(model, esper.GrowthConfig(layers=["", "*"], seeds_per_layer=SEEDS))
    teacher = chain([FEATURES, 32, CLASSES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step() -> None:
        x = torch.randn(BATCH, FEATURES, generator=generator)
        with torch.no_grad():
            y = teacher(x).argmax(1)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()

    with traced(model):
        step()
    for _ in range(STEPS):
        step()
    return [place.report() for place in places(model)]


def narrow_layer(trial: int) -> tuple[Reports, str]:
    """One of the hidden layers has width 2; its name."""
    torch.manual_seed(trial)
    planted = random.Random(trial).randrange(DEPTH)
    widths = [FEATURES, *(2 if index == planted else WIDTH for index in range(DEPTH)), CLASSES]
    return trained(chain(widths), torch.Generator().manual_seed(trial)), str(2 * planted)


def dead_chunk(trial: int) -> tuple[Reports, tuple[str, int]]:
    """All channels of one chunk of one hidden layer are held at zero; name and seed."""
    torch.manual_seed(trial)
    chooser = random.Random(trial)
    planted, seed = chooser.randrange(DEPTH), chooser.randrange(SEEDS)
    model = chain([FEATURES, *[WIDTH] * DEPTH, CLASSES])
    layer, rows = model[2 * planted], slice(seed * WIDTH // SEEDS, (seed + 1) * WIDTH // SEEDS)

    def silence() -> None:
        with torch.no_grad():
            layer.weight[rows] = 0
            layer.bias[rows] = 0

    silence()
    return trained(model, torch.Generator().manual_seed(trial), silence), (str(2 * planted), seed)


def first_layer(reports: Reports) -> Candidate:
    return next(one for one in shortlist(reports, len(reports)) if one.place.kind == "layer")


def shuffled(reports: Reports, column: str, trial: int) -> Reports:
    """The same reports with one column of what was sensed dealt out to other places, mean by mean."""
    values: list[Tensor] = [torch.tensor(getattr(report.seeds, column)) for report in reports]
    order = list(range(len(reports)))
    random.Random(trial).shuffle(order)
    return [
        replace(
            report, seeds=replace(report.seeds, **{column: values[source].mean().expand(report.num_seeds).tolist()})
        )
        for report, source in zip(reports, order, strict=True)
    ]


@pytest.fixture(scope="module")
def narrow() -> list[tuple[Reports, str]]:
    return [narrow_layer(trial) for trial in range(TRIALS)]


def test_a_narrow_layer_is_named(narrow):
    assert sum(first_layer(reports).place.layer_id == planted for reports, planted in narrow) >= 95


def test_with_shuffled_gradients_it_is_not(narrow):
    """Negative control: it is the gradient that tells."""
    found = sum(
        first_layer(shuffled(reports, "gradient_norm", trial)).place.layer_id == planted
        for trial, (reports, planted) in enumerate(narrow)
    )
    assert found <= 50


@pytest.mark.long
def test_a_dead_chunk_is_named_with_its_seed():
    found = [(first_layer(reports), planted) for reports, planted in map(dead_chunk, range(TRIALS))]
    assert sum((one.place.layer_id, one.seed_id) == planted for one, planted in found) >= 95
