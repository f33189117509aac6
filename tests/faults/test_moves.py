"""Millions of random commands to the seeds of one place, beside a model of their lifecycle: no transition outside of
the table, none lost, none twice, and a command that is refused changes nothing."""

import random
from collections import Counter

import pytest
import torch
from torch import nn

import esper
from esper.contracts.commands import Command
from esper.contracts.errors import TransitionError
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import Birth, discard, transition
from esper.kasmina.places.place import Place
from tests.faults.amount import amount

SEEDS, AT_ONCE = 512, 256
UPWARDS = (1, 2, 3, 4, 5, 6)
ALLOWED = (
    {(0, 1), (6, 7), (7, 0), (8, 0), (9, 0), (10, 0)}
    | {(state, state + 1) for state in UPWARDS[:-1]}
    | {(state, end) for state in UPWARDS for end in (8, 9, 10)}
)
"""The table, once more, by codes."""


class Model:
    """What states and versions the seeds must have."""

    def __init__(self) -> None:
        self.states, self.versions = [0] * SEEDS, [0] * SEEDS
        self.lifecycles = [0] * SEEDS
        self.born = 0
        self.has_graft: set[int] = set()

    def allows(self, seeds: list[int], versions: list[int], target: int) -> bool:
        """Whether a command must be obeyed."""
        return (
            len(set(seeds)) == len(seeds)
            and all(0 <= seed < SEEDS for seed in seeds)
            and all(self.versions[seed] == version for seed, version in zip(seeds, versions, strict=True))
            and all((self.states[seed], target) in ALLOWED for seed in seeds)
            and not (target == 0 and any(seed in self.has_graft for seed in seeds if self.states[seed] != 7))
        )

    def obey(self, seeds: list[int], target: int) -> None:
        """What a command that was obeyed does."""
        for seed in seeds:
            if target == 1:
                self.born += 1
                self.lifecycles[seed] = self.born
            elif target in (7, 8, 9, 10):
                self.has_graft -= {seed} if target == 7 or self.states[seed] < 3 else set()
            elif target == 3:
                self.has_graft.add(seed)
            elif target == 0:
                self.lifecycles[seed] = 0
            self.states[seed] = target
            self.versions[seed] += 1


def asked(model: Model, chance: random.Random) -> tuple[list[int], list[int], int]:
    """Seeds, versions and a target: mostly what is allowed, often with one thing that is not."""
    source = chance.choice(sorted(set(model.states)))
    there = [seed for seed in range(SEEDS) if model.states[seed] == source]
    seeds = chance.sample(there, min(len(there), chance.randrange(1, AT_ONCE)))
    versions = [model.versions[seed] for seed in seeds]
    targets = [target for target in range(11) if (source, target) in ALLOWED]
    upwards = [target for target in targets if target <= 7]
    target = chance.choice(upwards if upwards and chance.random() < 0.7 else targets)
    slip = chance.random()
    if slip < 0.1:
        target = chance.randrange(11)
    elif slip < 0.15:
        seeds[-1], versions[-1] = (other := chance.randrange(SEEDS)), model.versions[other]
    elif slip < 0.2:
        versions[chance.randrange(len(versions))] += chance.choice([-1, 1])
    elif slip < 0.23:
        seeds.append(seeds[0])
        versions.append(versions[0])
    elif slip < 0.25:
        seeds.append(chance.choice([-1, SEEDS]))
        versions.append(0)
    return seeds, versions, target


def wander(place: Place, commands: int) -> Counter[str]:
    """So many commands, a seed and its target counted as one; what became of them."""
    chance, model, seen = random.Random(0), Model(), Counter[str]()
    while seen.total() < commands:
        seeds, versions, target = asked(model, chance)
        is_birth = target == 1
        command = Command(
            place.layer_id,
            tuple(seeds),
            State(target),
            version=tuple(versions),
            blueprint="affine" if is_birth else None,
        )
        is_allowed, before = model.allows(seeds, versions, target), states_of(place)
        try:
            transition(place, command, birth=Birth(model.born + 1, ramp_steps=1) if is_birth else None)
            assert is_allowed, (seeds, versions, target)
            model.obey(seeds, target)
        except TransitionError:
            assert not is_allowed, (seeds, versions, target)
            assert states_of(place) == before
        seen["obeyed" if is_allowed else "refused"] += len(seeds)
        assert states_of(place) == [model.states, model.versions, model.lifecycles]
        fallen = [seed for seed in model.has_graft if model.states[seed] > 7]
        if fallen and chance.random() < 0.5:
            discard(place, *(model.lifecycles[seed] for seed in fallen))
            model.has_graft.difference_update(fallen)
        if sum(map(len, place.arena.fossils)) > SEEDS:
            place.arena.regrow({**place.arena.topology(), "fossils": []})
    return seen


def states_of(place: Place) -> list[list[int]]:
    """States, versions and lifecycles of all seeds."""
    state = place.state
    return torch.stack([state.lifecycle.long(), state.version.long(), state.lifecycle_id.long()]).tolist()


def place() -> Place:
    """Of a layer with many seeds."""
    model = esper.wrap(nn.Sequential(nn.Linear(2, SEEDS)), esper.GrowthConfig(layers={"0": SEEDS}))
    return place_named(model, "0")


def test_no_transition_is_illegal_lost_or_double(record_property):
    seen = wander(place(), amount(10_000_000))
    record_property("faults", f"{seen.total()} commands, of which {seen['refused']} must be refused")
    assert min(seen.values()) > 0.02 * seen.total()


@pytest.mark.parametrize("flaw", ["lost", "double"])
def test_would_be_seen(monkeypatch, flaw):
    """Negative control: a transition of a seed that is lost, and one that is made twice."""
    seen = place()
    write, calls = type(seen.state.lifecycle).__setitem__, Counter[str]()

    def flawed(tensor: torch.Tensor, index: object, value: object) -> None:
        write(tensor, index, value)
        calls["writes"] += 1
        if calls["writes"] > 200 and tensor is seen.state.lifecycle:
            write(tensor, 0, 0 if flaw == "lost" else (int(tensor[0]) + 1) % 11)

    monkeypatch.setattr(torch.Tensor, "__setitem__", flawed)
    with pytest.raises(AssertionError):
        wander(seen, 100_000)
