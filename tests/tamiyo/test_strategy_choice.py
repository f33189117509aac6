import math

import pytest

from esper.contracts.config import GrowthConfig
from esper.tamiyo.strategy_choice import choose_strategy
from tests.tamiyo.seen import place


@pytest.mark.parametrize(
    ("conditions", "strategy"),
    [
        ({}, "fixed_ramp"),
        ({"drift": 0.12, "gradient_noise": 1.0}, "fixed_ramp"),
        ({"drift": 0.13}, "drift_controlled"),
        ({"gradient_noise": 1.1}, "grad_norm_gated"),
        ({"drift": 0.13, "gradient_noise": 1.1}, "drift_controlled"),
        ({"drift": math.nan, "gradient_noise": math.nan}, "fixed_ramp"),
    ],
)
def test_conditions_choose_the_strategy(conditions, strategy):
    assert choose_strategy(place("0", **conditions), GrowthConfig()) == strategy


def test_the_threshold_of_drift_is_configured():
    assert choose_strategy(place("0", drift=0.13), GrowthConfig(drift_threshold=0.14)) == "fixed_ramp"


def test_a_configured_strategy_overrides_conditions():
    config = GrowthConfig(strategy="performance_linked")
    assert choose_strategy(place("0", drift=9.0), config) == "performance_linked"
