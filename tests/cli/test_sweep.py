"""``esper sweep``, as typed."""

import importlib.util
import io
import json
import re
import signal
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from esper.cli.main import main
from esper.cli.sweep_file import read_sweep
from esper.contracts.errors import ConfigError
from esper.flags.lock import held
from tests.cli.sweeps import FILE, begun, cluster, ended, kill_one, left_of, table, until

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


def read(tmp_path, text):
    (tmp_path / "file.yaml").write_text(text)
    return read_sweep(tmp_path / "file.yaml")


def test_choices_are_combined_in_their_order_and_single_values_are_no_parameters(tmp_path):
    found = read(tmp_path, "space: {lr: [0.1, 0.2], seed: [3, 4], epochs: 5}\nworkers: 3\n")
    pairs = [(0.1, 3), (0.1, 4), (0.2, 3), (0.2, 4)]
    assert [trial.parameters for trial in found.plan.trials] == [{"lr": lr, "seed": seed} for lr, seed in pairs]
    assert {trial.values["epochs"] for trial in found.plan.trials} == {5}
    assert {trial.values["controls"] for trial in found.plan.trials} == {False}
    assert (found.workers, found.output) == (3, Path("sweeps/file"))


def test_draws_are_the_same_every_time_meet_the_same_seeds_and_stay_when_there_are_more(tmp_path):
    text = "space: {lr: {log_uniform: [1e-4, 1e-1]}, batch_size: {uniform: [8, 64]}, seed: [0, 1]}\nsamples: %s\n"
    found, more = (read(tmp_path, text % count).plan.trials for count in (3, 5))
    assert found == more[:6]
    drawn = [(trial.parameters["lr"], trial.parameters["batch_size"]) for trial in more]
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 5
    assert all(1e-4 <= lr <= 1e-1 and 8 <= size <= 64 and isinstance(size, int) for lr, size in drawn)


def test_an_option_that_takes_a_list_is_left_open_by_the_word_choice(tmp_path):
    text = "space: {growth: {blueprints: {choice: [[bottleneck_mlp], [noise]]}, layers: [a, b]}}\n"
    trials = read(tmp_path, text).plan.trials
    assert [trial.values["growth"]["blueprints"] for trial in trials] == [["bottleneck_mlp"], ["noise"]]
    assert [trial.values["growth"]["layers"] for trial in trials] == [["a", "b"]] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must be a mapping"),
        ("", "there is no space"),
        ("space: {}", "there is no space"),
        ("space: [lr]", "space must be a mapping"),
        ("lr: [0.1]", "there is no key 'lr'. Options of esper run stand in the mapping 'space'"),
        ("space: {lr: 0.1}\nworker: 2", "Did you mean 'workers'"),
        ("space: {lr: 0.1}\nworkers: 0", "workers must be at least 1, not 0"),
        ("space: {lrr: 0.1}", "Did you mean 'lr'"),
        ("space: {output: a}", "there is no option 'output'"),
        ("space: {growth: {max_round: 1}}", "Did you mean 'max_rounds'"),
        ("space: {lr: []}", "lr is an empty list"),
        ("space: {lr: {choice: []}}", "lr is an empty list"),
        ("space: {lr: {choice: 3}}", "a choice takes a list"),
        ("space: {lr: [0.1, 0.1]}", "0.1 stands twice"),
        ("space: {lr: [0.1, fast]}", "lr must be a number, not 'fast'"),
        ("space: {lr: [0.1, -1]}", "with lr -1.0: lr must be above 0"),
        ("space: {lr: {chioce: [1]}}", "Did you mean 'choice'"),
        ("space: {lr: {choice: [1], uniform: [1, 2]}}", "must be one of choice, uniform, log_uniform"),
        ("space: {lr: {uniform: [2, 1]}}\nsamples: 1", "not from 2.0 to 1.0"),
        ("space: {lr: {uniform: [1]}}\nsamples: 1", "a list of two numbers"),
        ("space: {lr: {log_uniform: [0, 1]}}\nsamples: 1", "Begin above 0"),
        ("space: {epochs: {uniform: [1.5, 4]}}\nsamples: 1", "must be a whole number"),
        ("space: {host: {uniform: [1, 2]}}\nsamples: 1", "is no number"),
        ("space: {lr: {uniform: [1, 2]}}", "Say how many are to be drawn"),
        ("space: {lr: [1, 2]}\nsamples: 3", "the space has none"),
        ("space: {lr: [1, 2], seed: [0, 1]}\nmax_trials: 3", "4 trials, more than max_trials, 3"),
        ("space: {lr: 0.1}\nmetric: test_loss", "measured on the test samples"),
        ("space: {lr: 0.1}\nmode: up", "There is no mode 'up'"),
        ("space: {lr: 0.1}\nasha: {grace: 1}", "asha has no setting 'grace'"),
        ("space: {lr: 0.1}\nasha: {reduction_factor: 1}", "reduction_factor must be at least 2"),
        ("space: {lr: 0.1}\nasha: yes", "asha must be a mapping"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_words(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(text)
    assert main(["sweep", "file.yaml"]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


def test_a_line_that_is_wrong_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text("space: {lr: 0.1}")
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    for line, said in [
        (["nowhere.yaml"], "cannot be read"),
        (["file.yaml", "--engine", "rya"], "Did you mean 'ray'"),
        (["file.yaml", "--workers", "0"], "--workers must be at least 1"),
        (["file.yaml", "--output", "full"], "holds something else (thesis.tex)"),
        (["file.yaml", "--output", "file.yaml"], "is a file"),
    ]:
        assert main(["sweep", *line]) == 2
        assert said in capsys.readouterr().err


def test_two_at_once_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text("space: {lr: 0.1}")
    Path("out").mkdir()
    with held(Path("out/.sweep.lock"), "it"):
        assert main(["sweep", "file.yaml", "--output", "out"]) == 2
    assert "Another writer holds the sweep in out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep of four runs that nothing has cut, and what it printed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "four.yaml").write_text(FILE)
    with redirect_stdout(io.StringIO()) as out:
        assert main(["sweep", str(directory / "four.yaml"), "--output", str(directory / "out"), "--workers", "2"]) == 0
    return directory, out.getvalue()


def test_a_sweep_ends_with_a_table_a_page_and_real_runs(undisturbed, monkeypatch, capsys):
    directory, out = undisturbed
    rows = table(directory / "out")
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert re.search(r"\[4/4\] trial 000\d finished  held-out loss \d\.\d+  \(lr 0\.03?0*3?, seed \d\)", out)
    assert "Best is lr 0.03: held-out loss" in out
    assert "on average over 2 seeds" in (directory / "out/sweep.html").read_text()
    monkeypatch.chdir(directory)
    for name in ("report", "compare"):
        assert main([name, "out/trials/0000", "out/trials/0001"][: 2 if name == "report" else 3]) == 0
    assert main(["sweep", "four.yaml", "--output", "out"]) == 0
    assert "4 of them over already" in capsys.readouterr().out
    Path("four.yaml").write_text(FILE.replace("0.003", "0.004"))
    assert main(["sweep", "four.yaml", "--output", "out"]) == 2
    assert "lr was 0.03, 0.003 and is 0.03, 0.004" in capsys.readouterr().err


def test_a_killed_sweep_goes_on_and_a_killed_worker_changes_nothing(undisturbed, tmp_path):
    """What was cut goes on from its checkpoint."""
    (tmp_path / "four.yaml").write_text(FILE)
    sweep = begun(tmp_path, "four.yaml", "out", "--workers", "2")
    until(lambda: any(tmp_path.glob("out/trials/*/checkpoints/0*")))
    sweep.kill()
    ended(sweep, -signal.SIGKILL)
    assert "waiting" in {row["state"] for row in table(tmp_path / "out")}
    sweep = begun(tmp_path, "four.yaml", "out", "--workers", "2")
    killed = kill_one(tmp_path / "out/trials")
    ended(sweep)
    assert table(tmp_path / "out") == table(undisturbed[0] / "out")
    assert "resumed" in (tmp_path / f"out/trials/{killed}.log").read_text()


def test_trials_that_fail_or_are_behind_are_told_and_end_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = FILE.replace("[0, 1]", "0").replace("0.003", "0.000001") + "asha: {}\n"
    text = text.replace("max_rounds: 0", "max_rounds: 0, blueprints: %s")
    (tmp_path / "some.yaml").write_text(text % "{choice: [[bottleneck_mlp], [nonsense]]}")
    assert main(["sweep", "some.yaml", "--output", "out", "--workers", "1"]) == 0
    rows = table(tmp_path / "out")
    assert [row["state"] for row in rows] == ["finished", "failed", "stopped", "failed"]
    assert rows[2]["epochs"] == "1"
    assert "nonsense" in rows[1]["reason"]
    assert "2 trials failed: There is no blueprint 'nonsense'" in capsys.readouterr().out


@pytest.mark.long
def test_a_sweep_of_which_all_failed_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.yaml").write_text("space: {seed: [0, 1], growth: {blueprints: [nonsense]}}\n")
    assert main(["sweep", "none.yaml"]) == 1
    assert [row["state"] for row in table(tmp_path / "sweeps/none")] == ["failed"] * 2


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_what_it_has_and_goes_on(how, undisturbed, tmp_path):
    (tmp_path / "four.yaml").write_text(FILE)
    sweep = begun(tmp_path, "four.yaml", "out", "--workers", "2")
    until(lambda: any(tmp_path.glob("out/trials/*/checkpoints/0*")))
    sweep.send_signal(how)
    assert "interrupted: the same command goes on" in ended(sweep, 130)
    ended(begun(tmp_path, "four.yaml", "out"))
    assert table(tmp_path / "out") == table(undisturbed[0] / "out")


@needs_ray
def test_ray_comes_to_the_same_rows(undisturbed, tmp_path):
    (tmp_path / "one.yaml").write_text(FILE.replace("[0, 1]", "1").replace("[0.03, 0.003]", "0.03"))
    out = ended(begun(tmp_path, "one.yaml", "out", "--engine", "ray"))
    (row,) = table(tmp_path / "out")
    (other,) = (one for one in table(undisturbed[0] / "out") if (one["lr"], one["seed"]) == ("0.03", "1"))
    assert row == {name: other[name] for name in row} | {"trial": "0"}
    assert out.startswith("1 trial; 1 worker; out\n[1/1] trial 0000 finished")
    assert left_of(tmp_path) == []


@pytest.mark.long
@needs_ray
def test_sixty_four_runs_on_ray_with_two_workers_killed_are_those_of_the_pool(tmp_path):
    (tmp_path / "many.yaml").write_text(FILE.replace("[0, 1]", str(list(range(32)))))
    sweep = begun(tmp_path, "many.yaml", "ray", "--engine", "ray", "--workers", "2")
    first = kill_one(tmp_path / "ray/trials")
    second = kill_one(tmp_path / "ray/trials", spared=(first,))
    ended(sweep)
    ended(begun(tmp_path, "many.yaml", "pool", "--workers", "2"))
    rows = table(tmp_path / "ray")
    assert [row["state"] for row in rows] == ["finished"] * 64
    assert rows == table(tmp_path / "pool")
    assert all("resumed" in (tmp_path / f"ray/trials/{name}.log").read_text() for name in (first, second))


@pytest.mark.long
@needs_ray
def test_on_a_cluster_that_is_there(undisturbed, tmp_path, monkeypatch):
    (tmp_path / "one.yaml").write_text(FILE.replace("[0, 1]", "1").replace("[0.03, 0.003]", "0.03"))
    with cluster(tmp_path) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        ended(begun(tmp_path, "one.yaml", "out", "--engine", "ray"))
    (row,) = table(tmp_path / "out")
    (other,) = (one for one in table(undisturbed[0] / "out") if (one["lr"], one["seed"]) == ("0.03", "1"))
    assert row == {name: other[name] for name in row} | {"trial": "0"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sweep.csv",
        "sweep.html",
        "sweep.json",
        "trials",
    ]


@pytest.mark.long
@needs_ray
def test_on_ray_too_a_killed_sweep_goes_on_and_leaves_no_process(undisturbed, tmp_path):
    (tmp_path / "four.yaml").write_text(FILE)
    sweep = begun(tmp_path, "four.yaml", "out", "--engine", "ray", "--workers", "2")
    until(lambda: any(tmp_path.glob("out/trials/*/checkpoints/0*")))
    sweep.kill()
    ended(sweep, -signal.SIGKILL)
    ended(begun(tmp_path, "four.yaml", "out", "--engine", "ray", "--workers", "2"))
    assert table(tmp_path / "out") == table(undisturbed[0] / "out")


@pytest.mark.long
@needs_ray
def test_on_ray_too_a_trial_that_is_behind_is_stopped_early(tmp_path):
    (tmp_path / "two.yaml").write_text(FILE.replace("[0, 1]", "0").replace("0.003", "0.000001") + "asha: {}\n")
    ended(begun(tmp_path, "two.yaml", "out", "--engine", "ray", "--workers", "1"))
    assert [row["state"] for row in table(tmp_path / "out")] == ["finished", "stopped"]


def test_a_single_value_is_a_sweep_of_one(tmp_path):
    trials = read(tmp_path, "space: {lr: 0.1}").plan.trials
    assert [trial.parameters for trial in trials] == [{}]
    with pytest.raises(ConfigError, match="metric"):
        read(tmp_path, "space: {lr: 0.1}\nmetric: loss")
    assert json.dumps(trials[0].values)
