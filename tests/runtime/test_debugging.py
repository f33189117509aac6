"""Debug mode: it changes nothing, tells why, and finds whatever cannot be."""

import json
from dataclasses import replace

import pytest
import torch

import esper
from esper.contracts.errors import ConfigError, InvariantError
from esper.contracts.lifecycle import State
from tests.runtime.toy import Recipe, Script, batches, evaluate, growing, loss

SEEDS = growing(layers=["0", ""], seeds_per_layer=2, max_active_seeds=8)
LIVE = Recipe(config=SEEDS, policy=Script({1: [("0", 1)]}, trial="live"))


def lines(directory, kind):
    found = [json.loads(line) for line in (directory / "debug.jsonl").read_text().splitlines()]
    return [one for one in found if one["kind"] == kind]


@pytest.fixture
def live():
    """A graft is being blended in at seed 1 of the first layer, in the run itself."""
    trial = LIVE.build(debug=True)
    trial.train_until(lambda one: one.state("0", 1) is State.GRAFTING and one.session.step_count == 12)
    return trial


def write(column, value, seed=1):
    def corrupt(trial):
        trial.run.places["0"].state.get_buffer(column)[seed] = value

    return corrupt


def lose_the_graft(trial):
    trial.run.places["0"].arena.grafts.clear()


def share_a_slot(trial):
    grafts = trial.run.places["0"].arena.grafts
    (graft,) = grafts.values()
    grafts[9] = replace(graft, lifecycle=9, seeds=(0, 1), channels=(0, 1))


def graft_with(**changes):
    def corrupt(trial):
        grafts = trial.run.places["0"].arena.grafts
        ((number, graft),) = grafts.items()
        grafts[number] = replace(graft, **changes)

    return corrupt


def rename_the_graft(trial):
    grafts = trial.run.places["0"].arena.grafts
    grafts[9] = grafts.pop(1)


def stand_while_it_rises(trial):
    write("lifecycle", int(State.STABILIZATION))(trial)
    write("alpha", 1.0)(trial)


def cut_a_column(trial):
    arena = trial.run.places["0"].arena
    arena.memory = arena.memory.new_zeros(7, 3)


def count_wrongly(trial):
    trial.run.books.alive[1].state = State.EVALUATING


def hold_a_graft(trial):
    slots = trial.run.places["0"].arena.slots
    trial.optimizer.state[slots] = {"step": torch.tensor(1.0)}


CORRUPTIONS = {
    "a state that there is not": (write("lifecycle", 42), "seed 1 has the state 42"),
    "alpha above 1": (write("alpha", 1.5), "seed 1 has alpha 1.5, outside"),
    "alpha that is no number": (write("alpha", float("nan")), "seed 1 has alpha nan, outside"),
    "alpha of a seed that rests": (write("alpha", 0.25, seed=0), "seed 0 is DORMANT and has alpha 0.25"),
    "alpha of a graft that stands": (write("lifecycle", int(State.STABILIZATION)), "STABILIZATION and has alpha"),
    "a clock below 0": (write("steps_in_state", -1), "seed 1 has steps_in_state -1"),
    "a fault that there is not": (write("fault", 8), "seed 1 has the fault 8"),
    "a lifecycle of a seed that rests": (write("lifecycle_id", 3, seed=0), "seed 0 is DORMANT in lifecycle 3"),
    "a lifecycle without its graft": (write("lifecycle_id", 3), "seed 1 is GRAFTING in lifecycle 3, which has no live"),
    "a graft that is gone": (lose_the_graft, "seed 1 is GRAFTING in lifecycle 1, which has no live graft"),
    "two grafts in one slot": (share_a_slot, "both in slot 0"),
    "channels of another seed": (graft_with(channels=(0, 1)), "seed 1: the graft of lifecycle 1 writes channels"),
    "seeds that there are not": (graft_with(seeds=(1, 5)), "lifecycle 1 has seeds 1 to 4, and there are 2"),
    "a slot that there is not": (graft_with(slot=3), "in slot 3; there are 1 slots"),
    "a slot of another seed": (graft_with(seeds=(0, 1), channels=(0, 1)), "is in slot 0, which names seed 1"),
    "a graft under another number": (rename_the_graft, "the graft of lifecycle 1 is kept as that of lifecycle 9"),
    "a graft that rises where it stands": (stand_while_it_rises, "lifecycle 1 rises while it is STABILIZATION"),
    "columns of another size": (cut_a_column, "its memory are not of 1 slots"),
    "books that say otherwise": (count_wrongly, "seed 1 is GRAFTING in lifecycle 1; the books have it EVALUATING"),
    "an optimizer that remembers grafts": (hold_a_graft, "the optimizer has a state of its own for the grafts of '0'"),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_what_cannot_be_ends_the_run_and_names_the_seed(live, what):
    corrupt, said = CORRUPTIONS[what]
    corrupt(live)
    with pytest.raises(InvariantError, match=said) as raised:
        live.train()
    assert "Report it with" in str(raised.value)


def test_a_version_that_falls_is_found(live):
    place = live.run.places["0"]
    live.session.step(next(batches(1)))
    place.state.version[1] -= 1
    with pytest.raises(InvariantError, match="seed 1 went back from version"):
        live.train()


def test_seeds_of_one_graft_that_differ_are_found():
    trial = Recipe(config=SEEDS, policy=Script({1: ["0"]}, trial="live")).build(debug=True)
    trial.train_until(lambda one: one.state("0", 1) is State.GRAFTING)
    write("alpha", 0.125)(trial)
    with pytest.raises(InvariantError, match="has seeds that differ in alpha"):
        trial.train()


def test_fossils_whose_bytes_are_of_another_shape_are_found():
    trial = Recipe(config=growing(max_rounds=1), epochs=8).build(debug=True).train()
    trial.session.finish()
    arena = trial.run.places[""].arena
    arena._buffers["fossils_0"] = arena.fossil_bytes(0)[:, :3]
    with pytest.raises(InvariantError, match=r"its fossils \[1\] have bytes of shape \(1, 3\)"):
        trial.run.debug.check()


def test_frozen_parameters_that_move_in_a_step_are_found():
    """A fossil is moved by a hook that runs after the look before the step."""
    trial = Recipe(config=growing(max_rounds=1), epochs=8).build(debug=True).train(6)
    place = trial.run.places[""]
    while not place.arena.fossils:
        trial.train(1)

    def move(*_):
        place.arena.fossil_bytes(0).add_(1e-3)

    trial.optimizer.register_step_pre_hook(move)
    with pytest.raises(InvariantError, match="moved parameters that are frozen"):
        trial.train()


def test_without_debug_mode_nobody_looks():
    trial = LIVE.build()
    trial.train_until(lambda one: one.state("0", 1) is State.GRAFTING)
    write("fault", 8)(trial)
    trial.train(1)
    assert trial.run.debug is None


def test_debug_mode_leaves_every_byte_as_it_is(tmp_path):
    recipe = Recipe(config=SEEDS, policy=Script({1: [("0", 1), ""]}))
    assert recipe.build(debug=True, directory=tmp_path).train().digest() == recipe.build().train().digest()


def test_decisions_are_written_with_what_the_controller_went_by(tmp_path):
    recipe = Recipe(config=growing(layers=["0", "2", ""], grow_at=0.1, choice="first"), policy=None)
    recipe.build(debug=True, directory=tmp_path).train()
    decisions = lines(tmp_path, "decision")
    asked = next(one for one in decisions if one["commands"])
    assert asked["explained"]["when"]["reason"]
    where = {one["layer_id"]: one for one in asked["explained"]["where"]}
    named = [command["layer_id"] for command in asked["commands"]]
    assert sorted(named, key=lambda name: where[name]["rank"]) == named
    for layer_id, one in where.items():
        assert (one["left_out"] is None) is (layer_id in named)
    refused = next(one for one in decisions if one["step"] > asked["step"])
    assert not refused["commands"]
    assert refused["explained"]["when"]["obstacle"] or not refused["explained"]["when"]["has_stalled"]


def test_gates_are_written_with_what_they_were_shown(tmp_path):
    Recipe().build(debug=True, directory=tmp_path).train()
    gates = lines(tmp_path, "gate")
    standing = next(one for one in gates if one["target"] == "STABILIZATION")
    assert (standing["shown"]["alpha"], standing["said"], standing["lifecycle"]) == (1.0, "passed", 1)


def test_a_violation_is_written_too(tmp_path):
    trial = LIVE.build(debug=True, directory=tmp_path)
    trial.train_until(lambda one: one.session.step_count == 12)
    write("alpha", 1.5)(trial)
    with pytest.raises(InvariantError, match=r"debug\.jsonl"):
        trial.train()
    (line,) = lines(tmp_path, "violation")
    assert line["layer_id"] == "0"


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_it(monkeypatch, value, is_on):
    monkeypatch.setenv("ESPER_DEBUG", value)
    assert (Recipe().build().run.debug is not None) is is_on
    assert Recipe().build(debug=False).run.debug is None


def test_another_value_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("ESPER_DEBUG", "yes")
    with pytest.raises(ConfigError, match="ESPER_DEBUG is 'yes'"):
        Recipe().build()


def test_a_session_that_took_over_is_not_looked_at_by_the_one_before():
    trial = LIVE.build(debug=True)
    trial.train(1)
    write("fault", 8)(trial)
    second = type(trial)(trial.model, trial.optimizer, _session_on(trial), trial.epochs)
    second.train(1)


def _session_on(trial):
    return esper.Session(
        trial.model, trial.optimizer, loss=loss, evaluate=evaluate, planned_steps=120, policy=Script({}), debug=False
    )
