"""What is told of a checkpoint is what the session held when it was written."""

import json
import tarfile
from pathlib import Path

import pytest

from esper.checkpoint.digests import bytes_digest
from esper.checkpoint.manifest import FORMAT
from esper.cli.main import main
from esper.contracts.errors import ConfigError
from esper.runtime.inspection import inspect
from tests.runtime.toy import Recipe, Script, growing

LAYERS = growing(layers=["0", "2", ""], seeds_per_layer=2)


@pytest.fixture
def trial(tmp_path):
    """A round is under way: one of its candidates is a seed, one the whole model."""
    recipe = Recipe(config=LAYERS, policy=Script({1: [("0", 1), ""]}))
    return recipe.build(directory=tmp_path).train_until(lambda one: one.session.step_count == 15)


def place(found, layer_id):
    return next(one for one in found["places"] if one["layer_id"] == layer_id)


def test_seeds_and_grafts_are_those_of_the_session(trial, tmp_path):
    trial.session.save(tmp_path / "checkpoints")
    found = inspect(tmp_path)
    assert (found["step"], found["epoch"], found["format"], found["is_finished"]) == (15, 1, FORMAT, False)
    assert [one["layer_id"] for one in found["places"]] == list(trial.run.places)
    for layer_id, own in trial.run.places.items():
        told = place(found, layer_id)
        assert told["seeds"] == own.state.num_seeds
        assert [one["seed"] for one in told["awake"]] == own.state.lifecycle.nonzero().flatten().tolist()
        assert [one["lifecycle"] for one in told["grafts"]] == list(own.arena.grafts)
    (graft,) = place(found, "0")["grafts"]
    assert (graft["state"], graft["seeds"], graft["parameters"]) == (
        "GERMINATED",
        [1, 2],
        trial.run.books.alive[1].parameters,
    )


def test_what_is_under_way_is_told(trial, tmp_path):
    trial.session.save(tmp_path / "checkpoints")
    assert inspect(tmp_path)["under_way"] == {
        "round": {"number": 1, "start_step": 10, "end_step": 50, "candidates": [1, 2]},
        "arm": None,
    }


def test_where_an_arm_stands_is_told(tmp_path):
    class Cut(Exception):  # noqa: N818
        pass

    recipe = Recipe(config=LAYERS, policy=Script({1: [("0", 1), ""]}))
    trial = recipe.build(directory=tmp_path, checkpoint_steps=10)

    def cut(now):
        after_step(now)
        if now.arm == 1 and now.arm_step == 20:
            raise Cut

    arms = trial.rounds.arms
    after_step, arms._after_step = arms._after_step, cut
    with pytest.raises(Cut):
        trial.train()
    found = inspect(tmp_path)
    assert found["under_way"]["arm"] == {"index": 1, "step": 20, "steps": 40, "run_step": 50}
    (graft,) = place(found, "")["grafts"]
    assert (graft["state"], graft["alpha"]) == ("GRAFTING", 1.0)


def test_fossils_are_told_with_their_sizes(tmp_path):
    trial = Recipe(config=growing(max_rounds=1), epochs=8).build(directory=tmp_path).train()
    trial.session.finish()
    found = inspect(tmp_path)
    (fossil,) = place(found, "")["fossils"]
    (report,) = trial.session.field_reports
    assert fossil["parameters"] == report.parameters == found["parameters"]["fossils"]
    assert found["lifecycles"] == {"begun": 1, "ended": {"FOSSILIZED": 1}}
    assert found["is_finished"]


def test_a_checkpoint_of_an_earlier_format_is_read(tmp_path):
    with tarfile.open(Path(__file__).with_name("format_6.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = {manifest.parent.parent for manifest in tmp_path.rglob("manifest.json")}
    assert inspect(folder)["format"] == 6


def test_words_and_json_tell_of_the_same(trial, tmp_path, capsys):
    trial.session.save(tmp_path / "checkpoints")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    words = capsys.readouterr().out
    assert "step        15 of 120" in words
    assert "round 1 of 2 candidates, steps 10 to 50" in words
    assert "graft 1: 0, seed 1: bottleneck_mlp" in words


def test_a_run_of_a_newer_version_is_refused(trial, tmp_path, capsys):
    folder = trial.session.save(tmp_path / "checkpoints")
    manifest = json.loads((folder / "manifest.json").read_bytes().rpartition(b"\n")[0])
    text = json.dumps(manifest | {"format": FORMAT + 1}).encode()
    (folder / "manifest.json").write_bytes(text + b"\n" + bytes_digest(text))
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"has format {FORMAT + 1}" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("empty", "no checkpoint"), ("none", "does not exist"), ("file", "a file")])
def test_what_is_no_checkpoint_is_refused(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=said):
        inspect(tmp_path / name)


def test_a_damaged_checkpoint_is_refused(trial, tmp_path):
    folder = trial.session.save(tmp_path / "checkpoints")
    tensors = folder / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        inspect(folder)
