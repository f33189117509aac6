"""Paired gains with intervals over test samples."""

import pytest
import torch
from scipy import stats

from esper.evaluation.gains import fingerprint, gains
from esper.evaluation.row import PerSample
from esper.tasks.task import Samples


def _network(seed: int, shift: float = 0.0) -> PerSample:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(500, generator=generator) + shift
    return PerSample(losses, (torch.rand(500, generator=generator) > 0.3 + shift).float())


def test_the_interval_is_that_of_a_paired_test():
    grown, control = _network(0), _network(1, shift=0.1)
    found = gains(grown, control, None)
    for name, difference in (("loss", control.losses - grown.losses), ("metric", grown.correct - control.correct)):
        low, high = stats.norm.interval(0.95, difference.double().mean(), stats.sem(difference.double().numpy()))
        assert found[name]["low"] == pytest.approx(low, rel=1e-5)
        assert found[name]["high"] == pytest.approx(high, rel=1e-5)
    assert found["units"] == 500
    assert found["loss"]["low"] > 0


def test_samples_that_belong_together_count_once():
    grown, control = _network(0), _network(1)
    copies = [PerSample(*(values.repeat_interleave(4) for values in one)) for one in (grown, control)]
    alone, grouped = gains(grown, control, None), gains(*copies, torch.arange(500).repeat_interleave(4))
    assert grouped["units"] == 500
    assert grouped["loss"] == pytest.approx(alone["loss"])
    assert gains(*copies, None)["loss"]["high"] < alone["loss"]["high"]  # what ignoring them would claim


def test_what_is_not_finite_has_no_gain():
    broken = PerSample(torch.full((500,), float("nan")), torch.zeros(500))
    found = gains(broken, _network(1), None)
    assert found["loss"] == {"mean": None, "low": None, "high": None}
    assert found["metric"]["mean"] is not None


def test_a_fingerprint_tells_test_sets_apart():
    x, y = torch.randn(10, 3), torch.arange(10)
    same, other = fingerprint(Samples(x, y)), fingerprint(Samples(x, y.flip(0)))
    assert same == fingerprint(Samples(x.clone(), y.clone()))
    assert same["samples"] == 10
    assert same["digest"] != other["digest"]
