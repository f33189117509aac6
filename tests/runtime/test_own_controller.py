"""What a controller of one's own needs: observations that never change, versions, an answer to every command."""

import copy
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import pytest

import esper
from esper.contracts.commands import Answer, Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.tamiyo.policies import POLICIES
from esper.tamiyo.selection import SELECTIONS
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing


class Keeping(Script):
    """Keeps all that it sees, and a copy of it."""

    def __init__(self, plan: dict[int, list[Any]]) -> None:
        super().__init__(plan)
        object.__setattr__(self, "seen", [])

    def decide(self, observation: Observation) -> list[Command]:
        self.seen.append((observation, copy.deepcopy(observation), repr(observation)))
        return super().decide(observation)


def lists_in(value: Any, path: str = "") -> list[str]:
    """Where a report holds what can be changed; settings and gates of field reports are dicts."""
    if is_dataclass(value):
        return [found for one in fields(value) for found in lists_in(getattr(value, one.name), f"{path}.{one.name}")]
    if isinstance(value, tuple):
        return [found for item in value for found in lists_in(item, f"{path}[]")]
    return [path] if isinstance(value, list) else []


def test_an_observation_that_is_kept_never_changes():
    policy = Keeping({1: [""], 6: ["0"], 8: [("0", 1)]})
    config = growing(layers={"": 1, "0": 2}, round_fraction=0.1, keep_looks=(0.6,), gate_z=1e-4)
    trial = Recipe(config, policy=policy).build().train()
    trial.session.finish()
    assert len(policy.seen) > 5
    assert len(policy.seen[-1][0].reports) > 0
    for kept, copied, text in policy.seen:
        assert repr(kept) == text == repr(copied)
        assert lists_in(kept) == []


def test_reports_turn_lists_into_tuples():
    report = esper.SeedReport(chunk_variance=[1.0, 2.0])
    place = esper.PlaceReport("0", "layer", [0, 0], False, 4, 2, [0, 1, 2], seeds=report, versions=[3, 4])
    assert report.chunk_variance == (1.0, 2.0)
    assert report.gradient_norm is None
    assert (place.states, place.bounds, place.versions) == ((0, 0), (0, 1, 2), (3, 4))


def test_a_place_reports_the_versions_that_commands_are_for():
    trial = Recipe(growing(layers={"": 1, "0": 2}), policy=Script({1: [("0", 1)]})).build().train(2)
    seen = trial.growth.observer.observe()
    (place,) = [one for one in seen.places if one.layer_id == "0"]
    assert place.versions == tuple(trial.run.places["0"].state.version.tolist()) == (0, 1)
    cancel = Command("0", 1, State.CANCELLED)
    stale, fresh = (trial.session.submit(replace(cancel, version=one)) for one in (0, place.versions[1]))
    assert (stale.accepted, fresh.accepted) == (False, True)


class Asking(Script):
    """Asks for what is carried out, vetoed and refused, and notes what it is answered."""

    def __init__(self) -> None:
        super().__init__({})
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "answers", [])

    def decide(self, observation: Observation) -> list[Command]:
        good = Script({}).command("")
        wide = replace(Script({}, hidden=10_000).command("0"), id="wide")
        commands = [good, good, wide, Command("nowhere", "all", State.CULLED), Command("", "all", State.FOSSILIZED)]
        self.asked.extend(commands)
        return commands

    def answered(self, answer: Answer) -> None:
        self.answers.append(answer)


def test_a_policy_is_answered_once_for_each_of_its_commands_and_for_no_other():
    policy = Asking()
    trial = Recipe(growing(layers={"": 1, "0": 2}), policy=policy).build()
    trial.train(1)
    assert [answer.command_id for answer in policy.answers] == [command.id for command in policy.asked]
    assert [answer.accepted for answer in policy.answers] == [True, False, False, False, False]
    assert all(answer.reason for answer in policy.answers[1:])
    assert [event["target"] for event in trial.events("veto")] == ["GERMINATED"]
    trial.session.submit(Script({}).command("0"))
    trial.train(1)
    assert len(policy.answers) == len(policy.asked)


def test_ids_tell_equal_commands_apart_and_take_nothing_from_the_random_streams():
    import random

    import numpy as np
    import torch

    def streams() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = streams()
    commands = [Command("", "all", State.CULLED) for _ in range(1000)]
    assert streams() == before
    assert len({command.id for command in commands}) == 1000
    assert commands[0] == commands[1]
    assert isinstance(asdict(commands[0])["id"], str)
    assert replace(commands[0], version=3).id == commands[0].id


def test_a_session_answers_with_the_id_of_the_command():
    trial = Recipe(growing(layers=["", "0"]), policy=Script({})).build()
    accepted, refused = Script({}).command("0"), Command("nowhere", "all", State.CULLED)
    assert trial.session.submit(accepted).command_id == accepted.id
    assert trial.session.submit(refused).command_id == refused.id


def test_a_policy_and_a_selection_of_ones_own_are_found_by_name(monkeypatch):
    monkeypatch.setattr("esper.tamiyo.policies.POLICIES", dict(POLICIES))
    monkeypatch.setattr("esper.tamiyo.selection.SELECTIONS", dict(SELECTIONS))
    chosen: list[str] = []

    def last(options, history):
        chosen.append(options[-1].blueprint.id)
        return options[-1]

    esper.register_selection("last", last)
    esper.register_policy("mine", lambda config: Script({}))
    from esper.tamiyo.heuristic import HeuristicPolicy
    from esper.tamiyo.policies import make_policy

    config = growing(selection="last", blueprints=["bottleneck_mlp", "glu"], grow_after=0.05)
    assert isinstance(make_policy("mine", config), Script)
    Recipe(config, policy=HeuristicPolicy(config)).build().train(4)
    assert chosen
    with pytest.raises(esper.ConfigError, match="already"):
        esper.register_policy("mine", toy.Script)
