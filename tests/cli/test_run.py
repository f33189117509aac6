"""``esper run`` from the first batch to the closing table."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from esper.cli.command_line import parse
from esper.cli.configuration_file import to_values
from esper.cli.main import main
from esper.cli.options import Options
from esper.contracts.config import GrowthConfig
from esper.evaluation.scoring import per_sample
from esper.evaluation.training import SCHEDULES, Recipe
from esper.tasks.digits import digits
from tests import warm

ROW = {"parameters", "train_flops", "val_loss", "val_metric", "test_loss", "test_metric", "seconds"}
SHORT = ["--epochs", "3", "--no-controls", "--min-targets", "0"]


@pytest.fixture(scope="module")
def result(finished):
    return json.loads((finished / "result.json").read_text())


def test_a_run_directory_holds_everything(finished):
    names = {"config.yaml", "metrics.jsonl", "audit.jsonl", "checkpoints", "model", "result.json", "report.html"}
    names |= {"samples.safetensors", "run_id"}
    assert {entry.name for entry in finished.iterdir()} == names
    model = {"README.md", "labels.json", "model.pt2", "preparation.safetensors", "weights.safetensors"}
    assert {entry.name for entry in (finished / "model").iterdir()} == model


def test_the_stored_configuration_is_complete(finished, grows):
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored == to_values(parse(["run", "--config", grows]).options)
    assert set(stored["growth"]) == {one.name for one in fields(GrowthConfig)}


def test_the_result_has_its_schema(result):
    assert {"seed", "task", "metric", "rows", "lifecycles", "probe_flops"} <= set(result)
    assert (result["seed"], result["task"], result["host"], result["metric"]) == (0, "digits", "mlp", "accuracy")
    assert set(result["rows"]) == {"grown", "host_on", "static"}
    assert 0 < result["held_out"]["select"] < result["held_out"]["samples"]
    assert all(set(row) >= ROW for row in result["rows"].values())
    assert "FOSSILIZED" in [one["outcome"] for one in result["lifecycles"]]
    assert all({"layer_id", "seed_id", "blueprint", "outcome"} <= set(one) for one in result["lifecycles"])
    assert 0 < result["probe_flops"] < result["rows"]["grown"]["train_flops"]


def test_gains_are_those_of_the_rows_and_of_the_single_samples(finished, result):
    samples = load_file(finished / "samples.safetensors")
    grown = result["rows"]["grown"]
    for name in ("host_on", "static"):
        row, gains = result["rows"][name], result["gains"][name]
        assert gains["loss"]["mean"] == pytest.approx(row["test_loss"] - grown["test_loss"], abs=1e-6)
        assert gains["metric"]["mean"] == pytest.approx(grown["test_metric"] - row["test_metric"], abs=1e-6)
        assert gains["loss"]["low"] < gains["loss"]["mean"] < gains["loss"]["high"]
        assert samples[f"{name}.loss"].mean() == pytest.approx(row["test_loss"], rel=1e-5)
        assert len(samples[f"{name}.correct"]) == gains["units"] == result["test_set"]["samples"]


def test_controls_tell_how_they_learned(result):
    assert result["rows"]["grown"]["curve"] is None  # metrics.jsonl has it
    for name in ("host_on", "static"):
        row = result["rows"][name]
        assert row["curve"]["val_losses"][-1] == row["val_loss"]
        assert row["curve"]["flops"][-1] == row["train_flops"]


def test_the_model_card_tells_what_grew_and_what_it_was_worth(finished, result):
    card = (finished / "model" / "README.md").read_text()
    gain = 100 * result["gains"]["host_on"]["metric"]["mean"]
    assert f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} accuracy" in card
    assert f"{result['rows']['grown']['parameters']:,} parameters" in card
    assert all(f"`{one.name}`" in card for one in (finished / "model").iterdir() if one.name != "README.md")
    assert "not trained yet" not in card


def test_the_controls_have_equal_flops_and_static_the_grown_size(result):
    grown, host_on, static = (result["rows"][name] for name in ("grown", "host_on", "static"))
    for row in (host_on, static):
        assert abs(row["train_flops"] / grown["train_flops"] - 1) < 0.01
    assert host_on["parameters"] == 682 < grown["parameters"]
    assert abs(static["parameters"] / grown["parameters"] - 1) <= 0.02


def test_the_metrics_have_a_line_per_epoch(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for kind in ("epoch", "telemetry"):
        assert [line["epoch"] for line in lines if line["event"] == kind] == list(range(1, 13))


def test_the_exported_model_needs_no_esper_and_computes_what_was_measured(finished, result, tmp_path):
    torch.save(tuple(digits(0).test), tmp_path / "test.pt")
    code = """
import json, sys, torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
model = torch.export.load("model.pt2").module()
preparation, weights = load_file("preparation.safetensors"), load_file("weights.safetensors")
labels = json.load(open("labels.json"))
raw = torch.from_numpy(load_digits().images).float()
x = (raw.flatten(1) - preparation["mean"]) / preparation["std"]
assert not any(name.split(".")[0] == "esper" for name in sys.modules)
assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
    name: tensor.tolist() for name, tensor in weights.items()}
assert model(x[:1]).shape == (1, 10)
assert [labels[i] for i in model(x).argmax(1)] != []
test_x, test_y = torch.load(sys.argv[1])
print(torch.nn.functional.cross_entropy(model(test_x), test_y).item())
"""
    alone = warm.run(["-c", code, str(tmp_path / "test.pt")], folder=finished / "model")
    assert alone.returncode == 0, alone.stderr
    assert float(alone.stdout) == pytest.approx(result["rows"]["grown"]["test_loss"], rel=1e-5)


def test_a_finished_run_shows_its_table_again(finished, result, capsys):
    before = (finished / "result.json").read_bytes()
    assert main(["run", "--resume", "last", "--output", str(finished), "--device", "auto"]) == 0
    out = capsys.readouterr().out
    for name, row in result["rows"].items():
        assert f"{name} " in out
        assert f"{row['parameters']:,}" in out
        assert f"{row['test_metric']:.1%}" in out
    assert (finished / "result.json").read_bytes() == before


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main(["run", "--output", str(finished)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["run", "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["run", "--output", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_output_with_a_name_that_is_too_long_is_refused(tmp_path, capsys):
    assert main(["run", *SHORT, "--output", str(tmp_path / ("x" * 300))]) == 2
    assert "Name another directory." in capsys.readouterr().err


def test_output_that_cannot_be_made_is_refused(tmp_path, capsys):
    """A link to nowhere: nothing is there, and yet nothing can be made there."""
    (tmp_path / "link").symlink_to(tmp_path / "no" / "where")
    assert main(["run", *SHORT, "--output", str(tmp_path / "link")]) == 2
    assert "link cannot be made: " in (said := capsys.readouterr().err)
    assert "Name another directory." in said


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_follows_its_schedule_and_tells_it(tmp_path, schedule):
    assert main(["run", *SHORT, "--schedule", schedule, "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
    recipe, steps = Recipe(Options().lr, schedule), epochs[-1]["step"]
    assert [one["lr"] for one in epochs] == pytest.approx([recipe.rate(one["step"] - 1, steps) for one in epochs])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["rows"]["grown"]["schedule"] == schedule


@pytest.mark.parametrize(
    "option", [["--epochs", "21"], ["--lr", "0.1"], ["--seed", "1"], ["--no-controls"], ["--data", "mine.npz"]]
)
def test_a_run_is_not_resumed_with_other_options(finished, option, capsys):
    assert main(["run", "--resume", "last", "--output", str(finished), *option]) == 2
    assert "was started with" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_growth_settings(finished, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("growth: {max_rounds: 1, patience: 9}")
    assert main(["run", "--resume", "last", "--output", str(finished), "--config", str(tmp_path / "run.yaml")]) == 2
    assert "started with growth.patience 3, not 9" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "name"), [("schedule: cosine\n", "schedule"), ("  patience: 3\n", "growth.patience")])
def test_a_run_that_does_not_tell_all_its_options_is_not_resumed(finished, tmp_path, line, name, capsys):
    config = (finished / "config.yaml").read_text()
    assert line in config
    (tmp_path / "config.yaml").write_text(config.replace(line, ""))
    assert main(["run", "--resume", "last", "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.yaml'} does not tell {name}: " in capsys.readouterr().err


def test_an_option_that_asks_for_nothing_need_not_be_told(finished, tmp_path):
    """So that runs of a version without it go on."""
    shutil.copytree(finished, tmp_path / "run")
    config = (finished / "config.yaml").read_text()
    assert "flags: null\n" in config
    (tmp_path / "run" / "config.yaml").write_text(config.replace("flags: null\n", ""))
    assert main(["run", "--resume", "last", "--output", str(tmp_path / "run")]) == 0


def test_options_that_agree_may_be_given_again(finished):
    assert main(["run", "--resume", "last", "--output", str(finished), "--epochs", "12", "--controls"]) == 0


def test_runs_get_directories_of_their_own_and_the_newest_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["run", "--epochs", "1", "--no-controls", "--max-rounds", "0"]
    assert main(line) == main(line) == main([*line, "--seed", "7"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-0", "digits-0-2", "digits-7"]
    capsys.readouterr()
    assert main(["run", "--resume", "last"]) == 0
    assert "runs/digits-7 is finished" in capsys.readouterr().out


def test_without_controls_their_rows_are_null_with_a_reason(tmp_path, capsys):
    assert main(["run", *SHORT, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"]["host_on"] is result["rows"]["static"] is None
    assert result["reasons"] == {"host_on": "left out by --no-controls", "static": "left out by --no-controls"}
    assert result["gains"] == {"host_on": None, "static": None}
    assert "compared with the host trained on: left out by --no-controls" in capsys.readouterr().out


def test_an_archive_of_ones_own_is_learned(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 5, 2))
    np.savez(tmp_path / "mine.npz", x=x, y=np.where(x[:, 0, 0] > 0, "up", "down"))
    output = tmp_path / "out"
    assert main(["run", *SHORT, "--data", str(tmp_path / "mine.npz"), "--output", str(output)]) == 0
    assert json.loads((output / "result.json").read_text())["task"] == "mine"
    assert json.loads((output / "model" / "labels.json").read_text()) == ["down", "up"]


def test_the_run_starts_from_the_controls_first_weights(tmp_path, monkeypatch):
    """Both are the task's host, made right after seeding."""
    first = {}

    def wrap(model, config, example):
        first.update({name: value.clone() for name, value in model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("esper.evaluation.growing.wrap", wrap)
    assert main(["run", "--seed", "4", "--output", str(tmp_path / "run")]) == 130
    torch.manual_seed(4)
    assert all(torch.equal(first[name], value) for name, value in digits(4).make_host().state_dict().items())


def test_a_session_that_cannot_be_built_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    name = "esper.evaluation.growing.per_sample"
    monkeypatch.setattr(name, lambda model, samples, precision: (per_sample(model, samples)[0].mean(), None))
    assert main(["run", *SHORT, "--output", str(tmp_path / "run")]) == 2
    assert "evaluate returned losses of shape" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
