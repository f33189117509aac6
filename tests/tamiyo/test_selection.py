"""Three blueprints that fit, in the order of the configuration, and histories built for one strategy each."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.errors import ConfigError
from esper.contracts.settings.controller import ControllerSettings
from esper.tamiyo.selection import SELECTIONS, register_selection, selection_named, wilson_lower_bound
from esper.tamiyo.sizing import Option
from tests.tamiyo.seen import Pooled, report

IDS = ("placebo", "bottleneck_mlp", "glu")
OPTIONS = [Option("2", make_blueprint(name, {"hidden": 4}), Ports(6, 6)) for name in IDS]


def chosen(strategy: str, *history, options=OPTIONS) -> str:
    return SELECTIONS[strategy](options, history).blueprint.id


def gains(blueprint: str, *values: float):
    return [report(blueprint, gate_loss=1 - value, twin_gate_loss=1.0) for value in values]


def test_all_that_the_configuration_names_exist():
    named = {"performance", "stability", "accuracy", "risk", "novelty", "size", "cost"}
    assert set(SELECTIONS) == named
    assert all(name in (ControllerSettings.__doc__ or "") for name in named)


@pytest.mark.parametrize("strategy", sorted(set(SELECTIONS) - {"risk"}))
def test_without_history_the_order_of_the_configuration_decides(strategy):
    """Among equals; risk goes by confidence."""
    equals = [replace(one, blueprint=make_blueprint(name, {})) for one, name in zip(OPTIONS, IDS[:2], strict=False)]
    assert chosen(strategy, options=equals) == "placebo"
    assert chosen(strategy, options=equals[::-1]) == "bottleneck_mlp"


@pytest.mark.parametrize(
    ("history", "choice"),
    [
        ([], "placebo"),
        (gains("glu", 0.1), "glu"),
        (gains("glu", 0.1) + gains("bottleneck_mlp", 0.3, -0.2), "glu"),
        (gains("placebo", -0.1), "bottleneck_mlp"),
        (gains("placebo", -0.1) + gains("bottleneck_mlp", -0.1), "glu"),
        (gains("glu", math.nan), "placebo"),
        ([report("glu", "FOSSILIZED")], "placebo"),  # nothing was measured
    ],
)
def test_performance_follows_the_mean_gain(history, choice):
    assert chosen("performance", *history) == choice


@pytest.mark.parametrize(
    ("history", "choice"),
    [
        (gains("placebo", 0.0, 0.9) + gains("glu", 0.1, 0.12), "glu"),
        (gains("placebo", 0.3) + gains("glu", 0.1, 0.3), "glu"),
        (gains("glu", -0.1, -0.1), "placebo"),
        (gains("placebo", -0.1, -0.1), "bottleneck_mlp"),
    ],
)
def test_stability_follows_the_spread_of_gains(history, choice):
    assert chosen("stability", *history) == choice


def test_accuracy_follows_the_metric():
    history = [*gains("placebo", 0.5), report("placebo", metric_gain=0.01), report("glu", metric_gain=0.02)]
    assert chosen("accuracy", *history) == "glu"
    assert chosen("accuracy", report("placebo", metric_gain=-0.01), report("glu", metric_gain=None)) == "bottleneck_mlp"


def test_risk_follows_the_kept_share():
    assert chosen("risk") == "bottleneck_mlp"  # confidence 3, against 0 and 2
    lost = [report("bottleneck_mlp", outcome) for outcome in ("CULLED", "ROLLED_BACK", "CULLED")]
    assert chosen("risk", *lost) == "glu"
    kept = [report("placebo", "FOSSILIZED")] * 9
    assert chosen("risk", *kept) == "placebo"
    assert chosen("risk", *[report("bottleneck_mlp", "CANCELLED")] * 9) == "bottleneck_mlp"


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_bound_is_wilsons(kept, lost):
    tried = kept + lost
    expected = 0.0 if tried == 0 else binomtest(kept, tried).proportion_ci(0.90, method="wilson").low
    assert wilson_lower_bound(kept, tried) == pytest.approx(expected, abs=1e-3)


def test_novelty_follows_what_was_tried_least_here_then_anywhere():
    elsewhere = [
        report("placebo", layer_id="9"),
        report("placebo", layer_id="9"),
        report("bottleneck_mlp", layer_id="9"),
    ]
    assert chosen("novelty", *elsewhere) == "glu"
    assert chosen("novelty", *elsewhere, report("glu", layer_id="2")) == "bottleneck_mlp"
    everywhere = [report(name, layer_id="2") for name in IDS]
    assert chosen("novelty", *elsewhere, *everywhere) == "glu"


def test_size_and_cost_differ():
    options = [
        Option("2", Pooled(hidden=8), Ports(6, 6)),
        Option("2", make_blueprint("glu", {"hidden": 4}), Ports(6, 6)),
    ]
    assert chosen("size", options=options) == "glu"
    assert chosen("cost", options=options) == "pooled"


def test_users_register_their_own(monkeypatch):
    monkeypatch.setattr("esper.tamiyo.selection.SELECTIONS", dict(SELECTIONS))
    register_selection("last", lambda options, history: options[-1])
    assert selection_named("last")(OPTIONS, ()).blueprint.id == "glu"
    with pytest.raises(ConfigError, match="a selection strategy 'last' already"):
        register_selection("last", lambda options, history: options[0])


def test_an_unknown_one_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"no selection strategy 'sise'\. Did you mean 'size'"):
        selection_named("sise")
