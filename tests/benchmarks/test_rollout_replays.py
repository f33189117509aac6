"""What is claimed of rollouts, with fewer replays."""

from dataclasses import replace

import pytest

from benchmarks.rollout_kit import rollout
from benchmarks.rollout_kit.rollout import CRITERIA, DEGRADED, Harm, replay

BRIEF = (20.0, 60.0, 100.0)


@pytest.fixture(autouse=True)
def a_brief_plan(monkeypatch):
    """Without a step of one percent, which alone takes hundreds of runs."""
    monkeypatch.setattr(rollout, "PLAN", BRIEF)


def test_what_is_clean_is_completed():
    assert [replay(Harm(), seed)["outcome"] for seed in range(4)] == ["completed"] * 4


@pytest.mark.parametrize("name", DEGRADED)
def test_what_is_degraded_is_taken_back(name):
    ends = [replay(DEGRADED[name], seed) for seed in range(2)]
    assert [end["outcome"] for end in ends] == ["rolled back"] * 2


def test_no_data_never_promote_and_the_harness_sees_an_engine_that_does():
    silent, criteria = Harm(missing=1.0), replace(CRITERIA, patience_s=7200.0)
    assert replay(silent, 0, criteria=criteria)["highest"] == BRIEF[0]
    assert replay(silent, 0, looks_before_data=True, criteria=criteria)["highest"] > BRIEF[0]
