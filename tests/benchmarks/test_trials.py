"""The published list of trials, single trials, and what is told of them."""

import json
from argparse import Namespace
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.growth.trials import RESULTS, main
from benchmarks.growth.trials_jobs import changes
from benchmarks.growth.trials_list import CONTROLS, TASKS, TEXT, Trial, control_trials, listed, trials
from benchmarks.growth.trials_run import Job, ablations, fate, run_trial, same_bytes
from benchmarks.growth.trials_table import by_task, is_net_success, markdown, summary
from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.evaluation.scoring import per_sample
from esper.kasmina.host.anchoring import is_espers
from esper.kasmina.host.export import export
from esper.tamiyo.controls import NeverPolicy

LIST = trials()


def test_there_are_two_hundred_small_hosts_and_a_hundred_that_should_refuse():
    assert Counter(one.is_wide for one in LIST) == {False: 200, True: 100}


def test_every_trial_has_a_seed_and_a_split_of_its_own_that_no_table_uses():
    used = [one.seed for one in LIST] + [one.split for one in LIST]
    assert len(set(used)) == 600
    assert min(used) >= 30_000


def test_wide_hosts_have_at_least_four_times_the_usual_width_and_small_ones_at_most_one_and_a_half_times():
    for one in LIST:
        factor = one.width / TASKS[one.task].width
        assert factor >= 4 if one.is_wide else 0.5 <= factor <= 1.5


def test_any_beginning_of_the_list_holds_tasks_in_proportion():
    whole, beginning = (Counter((one.task, one.width) for one in part) for part in (LIST, LIST[:75]))
    for what, count in whole.items():
        assert abs(beginning[what] - count / 4) <= 1


def test_each_control_runs_in_two_hundred_trials_of_the_list():
    controls = [one for one in control_trials() if not CONTROLS[one.blueprint].colonies]
    assert Counter(one.blueprint for one in controls) == {"placebo": 200, "random_frozen": 200}
    assert {one.task for one in controls} == set(TASKS)
    assert all(replace(one, blueprint="default") == LIST[one.number] for one in controls)


def test_controls_that_are_colonies_run_in_two_hundred_trials_of_their_own():
    colonies = [one for one in control_trials() if CONTROLS[one.blueprint].colonies]
    assert Counter(one.blueprint for one in colonies) == {"placebo colony": 100, "random colony": 100}
    seeds = {one.seed for one in (*LIST, *colonies)} | {one.split for one in (*LIST, *colonies)}
    assert len(seeds) == 2 * (len(LIST) + len(colonies))


def test_the_published_list_holds_every_trial():
    published = json.loads(json.dumps(listed()))
    columns = published["columns"]
    colonies = [one for one in control_trials() if CONTROLS[one.blueprint].colonies]
    assert [Trial(**dict(zip(columns, row, strict=True))) for row in published["trials"]] == LIST + colonies


@pytest.mark.long
def test_a_control_that_is_a_colony_is_tried_as_one():
    trial = next(one for one in control_trials() if one.key.endswith("mnist1d-cnn-4-random colony"))
    told = run_trial(Job(trial, None, {"epochs": 20}, {}))
    assert {(place, blueprint) for place, blueprint, *_ in told["lifecycles"]} == {("*", "random_channels")}


def test_a_host_has_the_width_of_its_trial():
    wide = next(one for one in LIST if one.task == "digits" and one.width == 64)
    assert [layer.out_features for layer in list(wide.load(None).make_host())[::2]] == [64, 64, 10]


SHORT = {"epochs": 8, "batch_size": 32, "lr": 2e-2, "schedule": "cosine"}
ALWAYS = {"min_targets": 0}  # so short a run would not try to grow
NARROW = [one for one in LIST if (one.task, one.width) == ("digits", 4)][:10]


def begun(trial, **config):
    return growing(trial.load(None), GrowthConfig(seed=trial.seed, **ALWAYS, **config), **SHORT, seed=trial.seed)


@pytest.fixture(scope="module")
def grown():
    """The first of the narrow hosts that grows, in a run so short: its trial, run and task."""
    for trial in NARROW:
        run = begun(trial)
        run.finish()
        if fate(run)["kept"]:
            return trial, run, trial.load(None)
    pytest.fail("none of the narrow hosts grows")


def test_without_its_fossil_a_network_is_another(grown):
    _, run, task = grown
    before = per_sample(run.model, task.test)[0].mean()
    (one,) = ablations(run.model, task.test, fate(run)["kept"])
    assert one["loss_without"] > float(before)


def test_without_its_fossil_a_network_is_the_host_alone(grown):
    """The whole fossil is taken out, and nothing else."""
    _, run, task = grown
    (found,) = ablations(run.model, task.test, fate(run)["kept"])
    host = task.make_host()
    host.load_state_dict({name: value for name, value in run.model.state_dict().items() if not is_espers(name)})
    assert found["loss_without"] == pytest.approx(float(per_sample(host, task.test)[0].double().mean()))


def test_an_ablation_leaves_the_model_as_it_was(grown):
    _, run, task = grown
    before = per_sample(run.model, task.test)[0]
    ablations(run.model, task.test, fate(run)["kept"])
    assert torch.equal(per_sample(run.model, task.test)[0], before)


def test_every_lifecycle_is_counted(grown):
    _, run, _ = grown
    told = fate(run)
    assert told["begun"] == told["ended"] == len(told["lifecycles"]) > 0
    assert told["adopted"] == len(told["kept"]) == 1


def test_a_lifecycle_without_outcome_is_counted_as_begun_only():
    run = begun(NARROW[0])
    for batch in run.loader:
        run.session.step(batch)
    run.session.after_epoch()
    told = fate(run)
    assert told["begun"] > told["ended"] == 0


def test_a_run_that_adopted_nothing_is_its_twin_and_one_that_grew_is_not(grown):
    trial, run, task = grown
    strict = begun(trial, gate_z=1000.0)
    twin = growing(task, GrowthConfig(seed=trial.seed), **SHORT, seed=trial.seed, policy=NeverPolicy(GrowthConfig()))
    for one in (strict, twin):
        one.finish()
    assert fate(strict)["begun"] > 0
    assert same_bytes(export(strict.model), export(twin.model))
    assert not same_bytes(export(run.model), export(twin.model))


def test_a_trial_is_as_shipped_unless_it_is_shortened():
    assert changes(Namespace(epochs=None)) == ({}, {})
    assert changes(Namespace(epochs=4)) == ({"epochs": 4}, ALWAYS)


def test_a_wide_trial_is_also_compared_at_equal_flops():
    shorter = changes(Namespace(epochs=4))
    result = run_trial(Job(Trial(0, "digits", 64, True, 1, 1), None, *shorter))
    assert result["host_on"]["train_flops"] == pytest.approx(result["grown"]["train_flops"], rel=0.03)
    assert result["grown"]["train_flops"] > 1.1 * result["twin"]["train_flops"]
    assert result["grown"]["steps"] == result["twin"]["steps"] < result["host_on"]["steps"]


@pytest.mark.parametrize(
    ("loss", "accuracy", "is_success"),
    [(0.9, 0.895, True), (0.9, 0.894, False), (1.0, 0.95, False), (None, 0.95, False)],
)
def test_net_success_asks_for_a_lower_loss_and_an_accuracy_at_most_half_a_point_below(loss, accuracy, is_success):
    twin = {"test_loss": 1.0, "test_accuracy": 0.9}
    assert is_net_success({"grown": {"test_loss": loss, "test_accuracy": accuracy}, "twin": twin}) is is_success


def told(*, kept=True, gain=0.1, is_wide=False, begun=4, ended=4, useful=True, probed=0):
    """A trial and its result as :func:`run_trial` gives it."""
    grown = {"test_loss": 1.0 - gain, "test_accuracy": 0.9 + gain / 10, "train_flops": 200, "probe_flops": probed}
    twin = {"test_loss": 1.0, "test_accuracy": 0.9, "train_flops": 100}
    result = {
        "begun": begun,
        "ended": ended,
        "adopted": int(kept),
        "kept": [1] if kept else [],
        "grown": grown,
        "twin": twin,
        "host_on": twin | {"test_accuracy": 0.901},
        "is_twin": not kept,
        "fossils": [{"loss_without": 5.0 if useful else 0.0}] if kept else [],
    }
    return Trial(0, "digits", 64 if is_wide else 8, is_wide, 0, 0), result


def verdicts(results, controls=()):
    return {row["question"].partition(":")[0]: row["is_met"] for row in summary(results, controls)}


def test_targets_are_met_where_they_are():
    wide = [told(is_wide=True, kept=False, gain=0.0)] * 20
    controls = [(replace(told()[0], blueprint=name), told(kept=False)[1]) for name in ("placebo", "random_frozen")]
    found = verdicts([told()] * 200 + wide, controls)
    assert found.pop("percent of the training FLOPs that refusing cost wide hosts") is True
    assert found.pop("points that refusing cost wide hosts, at equal FLOPs") is True
    assert found.pop("points that refusing cost wide hosts, at equal steps") is True
    assert {name for name, is_met in found.items() if is_met is False} == set()
    assert sum(is_met is True for is_met in found.values()) == 6


def test_targets_are_missed_where_they_are():
    wide = [told(is_wide=True)] * 20 + [told(is_wide=True, kept=False, gain=-0.2, probed=100)]
    controls = [(replace(told()[0], blueprint=name), told()[1]) for name in ("placebo", "random_frozen")]
    small = [told(gain=-0.1)] * 20 + [told(kept=False, ended=1)] * 200
    found = verdicts(small + wide, controls)
    assert set(found.values()) == {False, None}
    assert sum(is_met is False for is_met in found.values()) == 9


def test_net_success_in_too_few_runs_is_no_claim():
    assert verdicts([told()] * 199)["net success"] is False
    assert verdicts([told()] * 200)["net success"] is True


@pytest.mark.parametrize(("won", "lost", "is_met"), [(196, 4, True), (195, 5, False), (965, 35, False)])
def test_net_success_asks_for_a_share_and_for_its_lower_bound(won, lost, is_met):
    """Of few runs the bound asks for more, of many the share."""
    assert verdicts([told()] * won + [told(gain=-0.1)] * lost)["net success"] is is_met


def test_what_was_not_tried_is_neither_met_nor_missed():
    rows = summary([], [])
    assert all(row["is_met"] is None for row in rows)
    assert markdown(rows, by_task([])).count("nothing to judge") == len(rows)


@pytest.mark.long
def test_an_interrupted_benchmark_goes_on_and_parts_make_the_whole(tmp_path, capsys):
    common = ["--limit", "4", "--epochs", "2", "--workers", "1", "--output", str(tmp_path)]
    assert main([*common, "--part", "1/2"]) == 0
    first = (tmp_path / "runs" / "trials" / "part-1-of-2.jsonl").read_text()
    assert main([*common, "--part", "2/2"]) == 0
    assert main(common) == 0
    assert (tmp_path / "runs" / "trials" / "part-1-of-2.jsonl").read_text() == first
    assert (tmp_path / "runs" / "trials" / "part-1-of-1.jsonl").read_text() == ""
    published = json.loads((tmp_path / "trials.json").read_text())
    without_text = [one for one in [*LIST, *control_trials()] if one.number < 4 and TASKS[one.task].data != TEXT]
    expected = [one.number for one in without_text]
    assert [one["number"] for one in published["trials"]] == expected
    assert any(row.get("rate") or row.get("mean") for row in published["summary"])
    assert f"{len(expected)} of {300 + 2 * 200} trials are finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "trials_list.json").read_text()) == json.loads(json.dumps(listed()))


@pytest.mark.long
def test_controls_can_be_tried_alone(tmp_path):
    options = ["--limit", "6", "--epochs", "1", "--workers", "1", "--output", str(tmp_path)]
    assert main([*options, "--blueprints", "placebo"]) == 0
    published = json.loads((tmp_path / "trials.json").read_text())
    tried = [one for one in control_trials() if one.number < 6 and one.blueprint == "placebo"]
    expected = [one.number for one in tried if TASKS[one.task].data != TEXT]
    assert expected
    assert [one["number"] for one in published["trials"]] == expected
    assert {one["blueprint"] for one in published["trials"]} == {"placebo"}


def test_a_try_cannot_be_taken_for_the_benchmark(capsys):
    with pytest.raises(SystemExit):
        main(["--epochs", "2"])
    assert "--output" in capsys.readouterr().err


def test_the_list_is_published_as_the_plan_has_it():
    assert json.loads((RESULTS / "trials_list.json").read_text()) == json.loads(json.dumps(listed()))
