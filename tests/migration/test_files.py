import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from benchmarks.rollout_kit.migration import kills, trial
from esper.checkpoint import store
from esper.checkpoint.digests import file_digest_in_a_row
from esper.cli.main import DONE, WRONG_INPUT, main
from esper.contracts.errors import CheckpointError, ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named
from esper.legacy.files import save
from esper.migration.files import migrate
from esper.migration.hybrid import HybridKasminaLayer, wrap_model
from esper.migration.loading import load
from tests.legacy.models import bare, batch, chain, grown
from tests.migration.flags import NEW

PLACES = esper.GrowthConfig(layers=["0", "2"], seeds_per_layer=4, max_growth=50.0)


@pytest.fixture
def old(tmp_path):
    """A model whose first seed is a fossil, and its file."""
    model = chain()
    grown(model[0])
    save(model, tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def migrated(path: Path) -> Path:
    (done,) = migrate([path])
    return done.output


def test_a_fossil_keeps_its_bytes_and_the_model_computes_the_same_to_the_bit(old):
    model, path = old
    new = esper.wrap(chain(bare), PLACES)
    load(new, migrated(path))
    assert torch.equal(new(batch()), model(batch()))
    place = place_named(new, "0")
    ((fossil,),) = place.arena.fossils
    found = fossil.unflatten(place.arena.fossil_bytes(0)[0])
    assert found.keys() == model[0].graft.keys()
    assert all(torch.equal(value, model[0].graft[name]) for name, value in found.items())
    assert torch.equal(esper.export(new, batch())(batch()), model(batch()))


def test_a_hybrid_model_takes_it_too(old):
    model, path = old
    new = wrap_model(chain(lambda layer: HybridKasminaLayer(layer, None, NEW)))
    load(new, migrated(path))
    assert torch.equal(new(batch()), model(batch()))


def test_one_layer_alone_is_migrated_too(tmp_path):
    layer, tokens = grown(chain()[0]), torch.randn(2, 5, 6)
    save(layer, tmp_path / "layer")
    new = esper.wrap(chain(bare)[0], esper.GrowthConfig(layers={"": 2}))
    load(new, migrated(tmp_path / "layer"))
    assert torch.equal(new(tokens), layer(tokens))


def test_dormant_germinating_and_culled_seeds_are_what_they_should_be(tmp_path):
    model = chain()
    model[0].request_germination(0, "low_rank")
    grown(model[2], steps=2).cancel_germination(0)
    save(model, tmp_path / "model")
    (done,) = migrate([tmp_path / "model"])
    assert "session.germinate" in done.layers["0"]
    new = esper.wrap(chain(bare), PLACES)
    load(new, done.output)
    assert not place_named(new, "0").state.lifecycle.any()
    culled = place_named(new, "2").state
    assert set(culled.lifecycle.tolist()) == {State.CULLED}
    assert set(culled.embargo_epochs.tolist()) == {PLACES.embargo_epochs}
    assert torch.equal(new(batch()), model(batch()))


@pytest.mark.parametrize("steps", [0, 3])
def test_a_seed_that_is_half_blended_in_is_refused_with_what_to_do(tmp_path, steps):
    model = chain()
    grown(model[0], steps=steps)
    save(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"Train {4 - steps} steps more .* or cancel_germination"):
        migrate([tmp_path / "model"])


def test_a_fossil_that_the_new_layer_would_leave_out_is_refused(tmp_path):
    model = chain()
    with torch.no_grad():
        grown(model[0]).graft["w1"][0, 0] = torch.inf
    save(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match="not finite"):
        migrate([tmp_path / "model"])


def test_a_migrated_model_trains_on_and_grows(old, tmp_path):
    """Its fossil stays, a culled seed wakes up, and another graft is kept."""
    model, _ = old
    grown(model[2], steps=1).cancel_germination(0)
    save(model, tmp_path / "more")
    new = esper.wrap(chain(bare), esper.GrowthConfig(layers=["0", "2"], max_growth=50.0, embargo_epochs=2))
    load(new, migrated(tmp_path / "more"))
    before = place_named(new, "0").arena.fossil_bytes(0)[0].clone()
    torch.manual_seed(3)
    x = torch.randn(1600, 6)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] * x[:, 3] > 0).long()
    loader = esper.BatchLoader((x[:600], y[:600]), batch_size=50, seed=0)
    session = esper.Session(
        new,
        torch.optim.AdamW(new.parameters(), lr=5e-3),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=lambda model: esper.Evaluation(losses=F.cross_entropy(model(x[600:]), y[600:], reduction="none")),
        planned_steps=16 * len(loader),
    )
    session.germinate("0", "all", settings={"hidden": 16})
    for _ in range(16):
        for one in loader:
            session.step(one)
        session.after_epoch()
    session.finish()
    assert [report.outcome for report in session.field_reports].count("FOSSILIZED") >= 1
    assert not place_named(new, "2").state.lifecycle.any()
    place = place_named(new, "0")
    assert place.arena.fossils[0][0].lifecycle == 0
    assert torch.equal(place.arena.fossil_bytes(0)[0, : before.numel()], before)


@pytest.mark.parametrize("change", ["no place", "widths", "grown", "not wrapped", "more weights"])
def test_a_model_that_does_not_fit_is_refused_and_stays_as_it_is(old, change):
    model = chain(bare)
    if change == "widths":
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    if change == "more weights":
        model.append(nn.Linear(3, 3))
    if change != "not wrapped":
        esper.wrap(model, esper.GrowthConfig(layers=["2"] if change == "no place" else ["0", "2"]))
    output = migrated(old[1])
    if change == "grown":
        load(model, output)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises((CheckpointError, ConfigError)):
        load(model, output)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("change", ["a session's", "the future's", "damaged", "missing"])
def test_a_directory_that_holds_no_such_migration_is_refused(old, tmp_path, change):
    output = migrated(old[1])
    if change == "a session's":
        store.write(output, {"identity": {}})
    elif change == "the future's":
        store.write(output, store.read(output) | {"version": 2})
    elif change == "damaged":
        file = next(output.glob("*/tensors.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    else:
        shutil.rmtree(output)
    with pytest.raises(CheckpointError):
        load(esper.wrap(chain(bare), PLACES), output)


def test_the_command_migrates_beside_the_file_or_into_a_folder(old, tmp_path, capsys):
    path = old[1]
    assert main(["migrate", str(path)]) == DONE
    assert "migrated to" in capsys.readouterr().out
    assert main(["migrate", str(path), "--output", str(tmp_path / "there")]) == DONE
    assert "0: a fossil" in capsys.readouterr().out
    assert main(["migrate", str(path)]) == DONE
    assert "nothing to do" in capsys.readouterr().out
    for output in (tmp_path / "model.migrated", tmp_path / "there" / "model.migrated"):
        assert store.read(output)["source"] == file_digest_in_a_row(path)


@pytest.mark.parametrize(
    "kind", ["missing", "other file there", "something else there", "one of two", "same name", "output"]
)
def test_bad_input_is_refused_by_one_sentence_and_nothing_is_written(old, tmp_path, capsys, kind):
    path, output = old[1], tmp_path / "model.migrated"
    words = [str(path)]
    if kind == "missing":
        words = [str(tmp_path / "nowhere")]
    elif kind == "other file there":
        migrated(path)
        save(chain(), path)
    elif kind == "something else there":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    elif kind == "one of two":
        (tmp_path / "bad").write_bytes(b"bad")
        words += [str(tmp_path / "bad")]
    elif kind == "output":
        words += ["--output", str(path)]
    else:
        (tmp_path / "other").mkdir()
        shutil.copy(path, tmp_path / "other")
        words += [str(tmp_path / "other" / path.name), "--output", str(tmp_path / "there")]
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")}
    assert main(["migrate", *words]) == WRONG_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")} == before


def test_a_hundred_generated_files_are_migrated_or_refused(tmp_path):
    found = trial(100, tmp_path)
    assert found["valid"]["migrated"] >= 10
    assert {outcome for counts in found.values() for outcome in counts} <= {"migrated", "refused"}
    assert all(found[kind] == {"refused": 20} for kind in ("partial", "nonsense", "future"))


def spoiling(words):
    """What a migration must not do to its file."""
    code = main(words)
    Path(words[1]).write_bytes(b"")
    return code


def believing(words):
    """One that takes every file as it is."""
    Path(words[1]).with_suffix(".migrated").mkdir()
    return DONE


@pytest.mark.parametrize(("command", "seen"), [(spoiling, "changed"), (believing, "differed")])
def test_the_trial_sees_a_migration_that_does_harm(tmp_path, command, seen):
    assert trial(3, tmp_path, command)["corrupt"] == {seen: 1}


def test_a_migration_that_is_killed_does_no_harm(tmp_path):
    found = kills(6, tmp_path)
    assert (found["changed"], found["not mended"], found.get("damaged", 0)) == (0, 0, 0)


def in_place(path: Path) -> None:
    """A migration that writes, slowly, where it is read."""
    target, whole = path.with_suffix(".migrated") / "000001", path.parent / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    migrate([path], whole)
    target.mkdir(parents=True)
    for source in sorted((whole / "model.migrated" / "000001").iterdir()):
        raw = source.read_bytes()
        with (target / source.name).open("wb") as file:
            for start in range(0, len(raw), 200_000):
                file.write(raw[start : start + 200_000])
                file.flush()
                time.sleep(0.01)


def test_the_kills_see_a_migration_that_writes_in_place(tmp_path):
    assert kills(8, tmp_path, in_place)["damaged"] >= 1
