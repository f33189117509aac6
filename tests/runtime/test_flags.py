"""Each feature flag switches what it names, in a run, and a run that goes on keeps its flags."""

from pathlib import Path

import pytest

import esper
from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.flags import Flag, Flags, none_in_play
from esper.contracts.lifecycle import State
from esper.flags import applied, resolve, set_flag
from esper.kasmina.host.anchoring import places
from tests.few import few
from tests.flags.faults import FAULTS
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

ALL_ON = dict.fromkeys(("ESPER_FLAG_" + name.upper() for name in none_in_play().values), "on")


def flags(**values: str) -> Flags:
    """All on but for these, as the environment would say."""
    return resolve("m", None, ALL_ON | {f"ESPER_FLAG_{name.upper()}": value for name, value in values.items()})


class Adventurous(Script):
    """Asks for another strategy than any flag or configuration says."""

    def command(self, place):
        asked = super().command(place)
        return Command(
            *(asked.layer_id, asked.seed_id, asked.target),
            blueprint=asked.blueprint,
            settings=asked.settings,
            strategy="grad_norm_gated",
            trial="live",
        )


def strategies(given: Flags | None) -> set[str]:
    trial = Recipe(growing(trial="live"), policy=Adventurous({1: [""]})).build(flags=given).train(5)
    return {one.strategy for one in trial.run.books.alive.values()} | {
        one.strategy for one in trial.session.field_reports
    }


def test_without_flags_nothing_is_recorded_and_the_bytes_are_those_of_flags_that_are_on():
    without, on = (Recipe().build(**given).train(6) for given in ({}, {"flags": flags()}))
    assert without.events("flags") == []
    assert without.digest() == on.digest()
    assert not without.session.flags.are_in_play


def test_flags_are_recorded_with_their_reasons():
    trial = Recipe().build(flags=flags(message_bus="0"))
    (event,) = trial.events("flags")
    assert (event["step"], event["model_id"]) == (0, "m")
    off = {"is_on": False, "reason": "ESPER_FLAG_MESSAGE_BUS switches it off", "is_in_doubt": False}
    assert event["flags"]["message_bus"] == off
    assert event["flags"]["extended_lifecycle"]["is_on"]


def test_extended_lifecycle_off_nothing_germinates_whoever_asks():
    off = Recipe().build(flags=flags(extended_lifecycle="0")).train(4)
    reason = "The flag extended_lifecycle is off: ESPER_FLAG_EXTENDED_LIFECYCLE switches it off."
    assert [event["reason"] for event in off.events("veto")] == [reason]
    with pytest.raises(TransitionError, match="extended_lifecycle is off"):
        off.session.germinate("", "all", settings={"hidden": 2})
    answer = off.session.submit(Script({}).command(""))
    assert (answer.accepted, answer.reason) == (False, reason)
    assert off.events("transition") == []
    on = Recipe().build(flags=flags()).train(4)
    assert on.events("transition")[0]["target"] == "GERMINATED"


def test_extended_lifecycle_off_the_host_trains_as_if_nobody_asked():
    off = Recipe().build(flags=flags(extended_lifecycle="0")).train(6)
    never = Recipe(policy=Script({})).build().train(6)
    assert off.digest() == never.digest()


def test_grafting_strategies_off_every_graft_is_ramped_whatever_the_controller_picks():
    assert strategies(flags()) == {"grad_norm_gated"}
    assert strategies(flags(grafting_strategies="0")) == {"fixed_ramp"}


def test_grafting_strategies_off_by_hand_too():
    trial = Recipe(growing(trial="live"), policy=Script({})).build(flags=flags(grafting_strategies="0"))
    trial.session.germinate("", "all", strategy="grad_norm_gated", settings={"hidden": 2})
    (one,) = trial.run.books.alive.values()
    assert one.strategy == "fixed_ramp"
    trial.train(3)
    (graft,) = trial.run.places[""].arena.grafts.values()
    assert graft.strategy.id == "fixed_ramp"


def test_chunked_architecture_off_a_layer_has_one_seed():
    for layers in (["0", "2"], {"0": 2, "2": 3}):
        config = growing(layers=layers)
        counts = {
            is_on: {one.state.num_seeds for one in places(esper.wrap(toy.host(), applied(given, config)))}
            for is_on, given in ((True, flags()), (False, flags(chunked_architecture="0")))
        }
        assert max(counts[True]) > 1
        assert counts[False] == {1}


def test_chunked_architecture_off_is_not_gone_around():
    off = flags(chunked_architecture="0")
    config = growing(layers={"2": 3})
    with pytest.raises(ConfigError, match=r"'2' has more than one seed: wrap the model with esper.flags.applied"):
        Recipe(config).build(flags=off)
    trial = Recipe(applied(off, config)).build(flags=off)
    with pytest.raises(ConfigError, match="A layer has one seed then, not 3"):
        trial.session.rechunk("2", 3)
    Recipe(applied(flags(), config)).build(flags=flags()).session.rechunk("2", 1)


def test_a_run_that_goes_on_keeps_the_flags_with_which_it_began(tmp_path):
    begun = Recipe().build(flags=flags(grafting_strategies="0"), directory=tmp_path).train(1)
    again = Recipe().build(flags=flags(), directory=tmp_path)
    again.session.load(tmp_path / "checkpoints")
    assert not again.session.flags.is_on("grafting_strategies")
    assert again.events("flags") == begun.events("flags")


@pytest.mark.parametrize("given", [flags(grafting_strategies="0"), None])
def test_what_is_switched_off_by_name_is_off_where_a_run_goes_on(tmp_path, given):
    """And on again once the switch is back: the run is what it was when it began."""
    recipe = Recipe(policy=Script({2: [""]}))
    recipe.build(flags=given, directory=tmp_path).train(1)
    killed = recipe.build(flags=flags(extended_lifecycle="0"), directory=tmp_path)
    killed.session.load(tmp_path / "checkpoints")
    killed.train(2)
    assert killed.events("veto")
    assert killed.events("transition") == []
    assert killed.session.flags.is_on("grafting_strategies") is (given is None)
    assert killed.events("flags")[-1]["step"] == toy.STEPS_PER_EPOCH
    back = recipe.build(directory=tmp_path)
    back.session.load(tmp_path / "checkpoints")
    assert back.session.flags.is_on("extended_lifecycle")


def test_grafts_that_are_there_stay_where_growth_is_switched_off_later(tmp_path):
    Recipe().build(directory=tmp_path, loader=toy.loader()).train(8)
    killed = Recipe().build(flags=flags(extended_lifecycle="0"), directory=tmp_path, loader=toy.loader())
    killed.session.load(tmp_path / "checkpoints")
    before = killed.run.books.lifecycles_begun
    assert before > 0
    assert killed.run.places[""].is_growing
    killed.train()
    assert killed.run.places[""].is_growing
    assert killed.run.books.lifecycles_begun == before


def test_a_smaller_share_does_not_touch_a_run_that_goes_on(tmp_path):
    """Only what is switched off by name does."""
    Recipe().build(flags=flags(), directory=tmp_path).train(1)
    smaller = Flag("extended_lifecycle", False, "outside the 1 %")
    again = Recipe().build(flags=Flags("m", {**flags().values, "extended_lifecycle": smaller}), directory=tmp_path)
    again.session.load(tmp_path / "checkpoints")
    assert again.session.flags.is_on("extended_lifecycle")


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return Recipe().build(flags=flags()).train(3).digest()


@pytest.mark.parametrize("fault", few(FAULTS, ["missing", "half written", "a pipe", "a rule that fails"]))
def test_whatever_becomes_of_the_store_in_the_middle_of_a_run_its_steps_do_not_know(tmp_path, fault, undisturbed):
    path = tmp_path / "flags.json"
    for name in none_in_play().values:
        set_flag(path, name, "on")
    trial = Recipe().build(flags=resolve("m", path, {})).train(1)
    FAULTS[fault](path)
    assert trial.train(2).digest() == undisturbed


@pytest.mark.parametrize("fault", few(FAULTS, ["missing", "half written", "a pipe", "a rule that fails"]))
def test_a_run_that_begins_with_a_faulty_store_trains_and_nothing_grows(tmp_path, fault):
    path = tmp_path / "flags.json"
    set_flag(path, "message_bus", "on")
    (path.parent / "flags.json.good").unlink()
    FAULTS[fault](path)
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        given = resolve("m", Path(path), {})
    trial = Recipe(applied(given, growing())).build(flags=given).train(2)
    assert trial.events("transition") == []
    assert State.DORMANT is trial.state()
