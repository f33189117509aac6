"""A checkpoint of which any part does not fit is refused, and the session is to the byte what it was."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.checkpoint import store
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest

NONSENSE = b"what no part of a checkpoint is"

LAYERS = {"": 1, "0": 2}


class Remembering(Script):
    """A policy with a state of its own."""

    def __init__(self, plan: dict[int, list[Any]], trial: str) -> None:
        super().__init__(plan, trial=trial)
        object.__setattr__(self, "count", [0])

    def decide(self, observation):
        self.count[0] += 1
        return super().decide(observation)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count[0]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count[0] = int(state["count"])


def recipe(trial: str = "round") -> Recipe:
    return Recipe(
        growing(layers=LAYERS, keep_looks=(0.95,), round_fraction=0.2), policy=Remembering({1: [""], 6: ["0"]}, trial)
    )


def cut(trial: str, steps: int, path: Path) -> Path:
    """A checkpoint in the middle of a round or of a live trial, with a graft that was adopted before."""
    source = toy.loader()
    one = recipe(trial).build(loader=source)
    while one.session.step_count < steps:
        for batch in source:
            one.session.step(batch)
            if one.session.step_count == steps:
                break
        else:
            one.session.after_epoch()
    return one.session.save(path).parent


@pytest.fixture(scope="module", params=few(["round", "live"], ["round"]))
def saved(request, tmp_path_factory) -> tuple[str, Any]:
    path = cut(request.param, 75 if request.param == "round" else 34, tmp_path_factory.mktemp("saved"))
    return request.param, store.read(path)


def victim(trial: str) -> Trial:
    """A session that has done something of its own."""
    one = recipe(trial).build(loader=toy.loader())
    for batch in toy.batches(0):
        one.session.step(batch)
    return one


def part(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def parts(tree: Any, depth: int, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all parts of a state down to a depth; of lists the first."""
    if path:
        yield path
    if depth:
        keys = list(tree) if isinstance(tree, dict) else [0] if isinstance(tree, list | tuple) and tree else []
        for key in keys:
            yield from parts(tree[key], depth - 1, (*path, key))


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of a state, one part of which was changed."""
    tree = copy.deepcopy(tree)
    at, parents = tree, []
    for key in path[:-1]:
        parents.append((at, key))
        at = at[key]
    if isinstance(at, tuple):
        at = list(at)
        change(at, path[-1])
        parents[-1][0][parents[-1][1]] = tuple(at)
    else:
        change(at, path[-1])
    return tree


def replaced_by(value: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = value

    return change


def removed(container: Any, key: Any) -> None:
    del container[key]


def cut_short(container: Any, key: Any) -> None:
    container[key] = container[key].flatten()[:-1]


DAMAGE = {"removed": removed, "nonsense": replaced_by(NONSENSE), "cut": cut_short}

FREE = {
    ("recent",),  # batches are the caller's
    ("growth", "round", "batches"),
    ("growth", "trial", "window", "batches"),
    ("clock", "scheduler"),  # what only the caller's objects understand
    ("policy",),
    ("loader",),
    ("events", 0),  # what was told; nothing follows from it any more
    ("books", "reports", 0, "gates"),  # what was measured
    ("growth", "costs", "counted"),  # what is missing is counted again
}
"""Below these anything may stand."""

BY_PLACE = {
    ("identity", "num_seeds"),
    ("growth", "keeping", "pending"),
    ("growth", "observer", "weights"),
    ("growth", "tracing", "rows"),
}
"""Of these not every place need have one."""


def is_free(path: tuple[Any, ...], damage: str) -> bool:
    is_optional = damage == "removed" and any(path[:-1] == one for one in BY_PLACE)
    depth = len(path) - (damage == "removed")
    return is_optional or any(path[: len(one)] == one and depth >= len(one) for one in FREE)


def digest(trial: Trial, path: Path) -> str:
    """Of everything that a session saves, the random streams among it."""
    return tree_digest(store.read(trial.session.save(path).parent))


@pytest.mark.parametrize("damage", few(DAMAGE, ["nonsense"]))
def test_a_state_of_which_a_part_is_damaged_is_refused_and_nothing_was_changed(damage, saved, tmp_path):
    trial, state = saved
    session = victim(trial)
    before, taken = digest(session, tmp_path / "before"), []
    for path in parts(state, 4):
        if is_free(path, damage) or (damage == "removed" and isinstance(path[-1], int)):
            continue
        whole = part(state, path)
        if damage == "cut" and not (isinstance(whole, torch.Tensor) and whole.numel()):
            continue
        store.write(tmp_path / "damaged", changed(state, path, DAMAGE[damage]))
        try:
            session.session.load(tmp_path / "damaged")
        except esper.CheckpointError:
            continue
        taken.append(path)
    assert taken == [], taken
    assert digest(session, tmp_path / "after") == before


@pytest.mark.parametrize("name", ["loader", "policy"])
def test_what_the_callers_objects_refuse_is_refused_and_they_are_what_they_were(name, saved, tmp_path):
    trial, state = saved
    session = victim(trial)
    before = digest(session, tmp_path / "before")
    store.write(tmp_path / "damaged", state | {name: {"other": 1}})
    with pytest.raises(esper.CheckpointError, match="does not fit this run: KeyError"):
        session.session.load(tmp_path / "damaged")
    assert digest(session, tmp_path / "after") == before


def test_a_state_that_is_whole_is_taken(saved, tmp_path):
    """The control."""
    trial, state = saved
    store.write(tmp_path / "whole", state)
    session = victim(trial)
    session.session.load(tmp_path / "whole")
    assert digest(session, tmp_path / "now") == tree_digest(state)
