"""The harness that measures the errors of A/B, with few experiments."""

import json
from pathlib import Path

import numpy as np

from benchmarks.rollout_kit import ab
from esper.evaluation.ab.record import Plan
from esper.evaluation.ab.runner import ABTestRunner
from esper.evaluation.ab.subject import InProcess

ROOT = Path(__file__).parents[2]


def test_false_winners_are_rare_and_the_harness_sees_tests_that_are_wrong():
    found = ab.null(200)
    for name in ab.SETTINGS:
        assert found["esper ab"][name]["lower_95"] <= ab.ALPHA
        assert found["t test that peeks"][name]["lower_95"] > ab.ALPHA
    assert found["esper ab, A always first, autocorrelated"]["lower_95"] > ab.ALPHA


def test_real_effects_are_found():
    assert ab.effect(60)["one metric"]["upper_95"] > 0.85


def test_equivalence_is_found_where_it_is_true_and_only_there():
    found = ab.equivalence(25)
    assert found["where A and B are alike"]["share"] > 0.7
    assert found["where they differ by the margin"]["share"] < 0.1


def test_the_harness_judges_as_a_comparison_that_looks_after_every_pair():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.4, 0.8, 1.2):
        differences = rng.normal(shift, size=30)
        a = InProcess("a", lambda seed, values=differences: {"score": values[seed]})
        b = InProcess("b", lambda seed: {"score": 0.0})
        stepwise = ABTestRunner(a, b, Plan(max_pairs=30)).run().findings["score"].verdict
        assert ab.verdicts(differences[None], ab.metrics(1)) == [stepwise]


def test_the_page_shows_what_was_measured():
    recorded = json.loads((ROOT / "benchmarks/results/rollout_kit/ab.json").read_text())["result"]
    assert ab.table(recorded) in (ROOT / "docs/ab.md").read_text()
    for one in recorded["false winners"]["esper ab"].values():
        assert one["experiments"] == 5000
        assert one["upper_95"] <= 0.056
    assert recorded["0.8 standard deviations, 30 pairs"]["one metric"]["share"] >= 0.8
