"""However many places there are, a boundary waits for the device as often as with one."""

import itertools

import pytest
import torch
from torch import nn

from tests.runtime import toy
from tests.runtime.reads import Reads
from tests.runtime.toy import Recipe, Script, growing

PLACES = 6


def host() -> nn.Sequential:
    torch.manual_seed(0)
    widths = [toy.FEATURES, *[6] * (PLACES - 1), toy.CLASSES]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def reads_of_a_boundary(num_places: int, **session) -> Reads:
    recipe = Recipe(growing(layers=[str(2 * index) for index in range(num_places)]), model=host, policy=Script({}))
    trial = recipe.build(**session)
    with Reads() as reads:
        for _ in range(3):
            reads.count, reads.where = 0, []
            for batch in toy.batches(0):
                trial.session.step(batch)
            before = reads.count
            trial.session.after_epoch()
    reads.count -= before
    return reads


@pytest.mark.parametrize("listeners", [[], [id]], ids=["without telemetry", "with telemetry"])
def test_a_boundary_reads_as_often_for_six_places_as_for_one(listeners):
    one, six = (reads_of_a_boundary(places, on_event=listeners) for places in (1, PLACES))
    assert one.count == six.count <= 9 + len(listeners), six.where


def test_each_place_by_itself_would_be_a_read_of_its_own():
    """The control."""
    trial = Recipe(growing(layers=["0", "2", "4"]), model=host, policy=Script({})).build().train(1)
    with Reads() as reads:
        for place in trial.run.places.values():
            place.report()
    assert reads.count == 3
    with Reads() as reads:
        for place in trial.run.places.values():
            place.telemetry.report()
            place.telemetry.gradient_noise()
            place.state.version.tolist()
    assert reads.count == 9


def test_reports_read_together_are_those_read_one_by_one():
    trial = Recipe(growing(layers=["0", "2", "4"]), model=host, policy=Script({1: ["2"]})).build().train(2)
    for batch in toy.batches(0):
        trial.session.step(batch)
    seen = trial.growth.observer.observe()
    for report in seen.places:
        place = trial.run.places[report.layer_id]
        assert report.seeds == place.telemetry.report()
        assert report.gradient_noise == place.telemetry.gradient_noise() is not None
        assert report.states == tuple(place.state.lifecycle.tolist())
        assert report.versions == tuple(place.state.version.tolist())
        assert report.drift is not None
