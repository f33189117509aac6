"""Regret of the round's choice: single candidates alone, the best one fixed from other seeds, and the table."""

import json

import pytest

from benchmarks.growth.regret import best_of_others, candidates, main, regrets
from benchmarks.growth.regret_run import Job, run_one

SHORT = {"epochs": 8, "lr": 3e-2}


def run(seed, place=None):
    return run_one(Job("digits", seed, place, None, SHORT, {"min_targets": 0}))


@pytest.fixture(scope="module")
def seed_and_chosen():
    """The first seed whose round adopts something, in a run so short."""
    return next((seed, result) for seed in range(2002, 2012) if (result := run(seed))["adopted"] is not None)


def test_alone_the_place_that_the_round_adopted_ends_with_the_same_network(seed_and_chosen):
    """To the byte: same time, size and first weights; so that regret is what the choice cost and nothing else."""
    seed, chosen = seed_and_chosen
    alone = run(seed, chosen["adopted"])
    assert alone["test_loss"] == chosen["test_loss"]
    if chosen["adopted"] == "":  # the longest path is the first candidate: the round tried no other
        assert alone["train_flops"] == chosen["train_flops"]
    else:
        assert alone["train_flops"] < chosen["train_flops"]


def test_alone_another_place_ends_with_another_network(seed_and_chosen):
    seed, chosen = seed_and_chosen
    other = next(place for place in chosen["offered"] if place != chosen["adopted"])
    assert run(seed, other)["test_loss"] != chosen["test_loss"]


def test_a_place_that_was_not_on_the_shortlist_is_offered_alone(seed_and_chosen):
    seed, chosen = seed_and_chosen
    missing = next(place for place in ("0", "2", "4") if place not in chosen["offered"])
    assert run(seed, missing)["offered"] == [missing]


def test_the_best_candidate_is_fixed_from_other_seeds():
    """On seed 0 alone b is best, on the others a."""
    single = {"a": {0: 9.0, 1: 1.0, 2: 1.0}, "b": {0: 0.0, 1: 2.0, 2: 2.0}}
    assert best_of_others(single, seed=0) == "a"
    assert best_of_others({"a": {0: 9.0, 1: 1.0, 2: 1.0}, "b": {0: 0.0, 1: 2.0, 2: 1.0}}, seed=1) == "b"


def test_regret_is_the_choice_minus_the_best_candidate_of_other_seeds():
    single = {"a": {0: 9.0, 1: 1.0, 2: 1.0}, "b": {0: 5.0, 1: 20.0, 2: 20.0}}
    assert regrets({0: 6.0, 1: 1.5, 2: 1.0}, single) == {0: -3.0, 1: 0.5, 2: 0.0}


def test_candidates_are_at_most_six_places_offered_most_often_first():
    rounds = [{"offered": list("abcdefg")}, {"offered": list("gfedcb")}, {"offered": ["g"]}]
    assert candidates(rounds) == ["g", "b", "c", "d", "e", "f"]


@pytest.mark.long
def test_the_whole_is_computed_once_and_told(tmp_path, capsys):
    common = ["--tasks", "digits", "--seeds", "3", "--epochs", "3", "--output", str(tmp_path), "--workers", "1"]
    assert main(common) == 0
    lines = (tmp_path / "runs" / "regret" / "digits.jsonl").read_text().splitlines()
    (row,) = json.loads((tmp_path / "regret.json").read_text())["tasks"]
    assert len(lines) == 3 * (1 + len(row["single"]))
    assert row["is_met"] is (row["regret"] <= row["standard_error"])
    assert main(common) == 0
    assert (tmp_path / "runs" / "regret" / "digits.jsonl").read_text().splitlines() == lines
    assert "| digits | 3 |" in capsys.readouterr().out


@pytest.mark.long
def test_a_task_in_which_nothing_was_offered_is_told(tmp_path, capsys):
    """A run of one epoch is over before anything could grow."""
    common = ["--tasks", "digits", "--seeds", "3", "--epochs", "1", "--output", str(tmp_path), "--workers", "1"]
    assert main(common) == 0
    assert "digits: nothing to compare; 3 rounds are finished and offered 0 places." in capsys.readouterr().out


def test_where_nothing_is_finished_what_is_published_stays(tmp_path, capsys):
    (tmp_path / "regret.json").write_text("published")
    assert main(["--tables", "--output", str(tmp_path)]) == 0
    assert "Nothing is finished" in capsys.readouterr().out
    assert (tmp_path / "regret.json").read_text() == "published"
