"""Whatever is asked of a session, in whatever order: no transition outside of the table, none lost, none twice."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from esper.contracts.commands import Command
from esper.contracts.errors import EsperError
from esper.contracts.lifecycle import TRANSITIONS, State
from tests.faults.amount import amount
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

PLACES = {"": 2, "0": 2, "2": 1}
BLUEPRINTS = ("bottleneck_mlp", "affine", "low_rank", "none such")
RECIPE = Recipe(
    growing(layers=PLACES, round_fraction=0.1, ramp_fraction=0.02), epochs=4, policy=Script({}), session={"debug": True}
)

STREAMS = 16
"""Of orders, which may run side by side."""

REST = (State.DORMANT.name, 0)

places = st.sampled_from([*PLACES, "nowhere"])
seeds = st.sampled_from([0, 1, 7, -1, "all", (0, 1)])


class Commands(RuleBasedStateMachine):
    """A session that anything is asked of, between steps."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.heard: list[dict[str, Any]] = []
        self.batches = iter([batch for epoch in range(4) for batch in toy.batches(epoch)])
        self.trial = RECIPE.build(on_event=self.heard.append)
        self.states: dict[tuple[str, int], int] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(place=places, seed=seeds, blueprint=st.sampled_from(BLUEPRINTS), trial=st.sampled_from(["round", "live"]))
    def germinate(self, place: str, seed: Any, blueprint: str, trial: str) -> None:
        command = Command(place, seed, State.GERMINATED, blueprint=blueprint, settings={}, trial=trial)
        self.ask("germinate", lambda: self.trial.session.submit(command))

    @rule(place=places, seed=seeds, asked=st.sampled_from(list(State)))
    def command(self, place: str, seed: Any, asked: State) -> None:
        self.ask(asked.name, lambda: self.trial.session.submit(Command(place, seed, asked)))

    @rule(place=places, seed=seeds)
    def cancel(self, place: str, seed: Any) -> None:
        self.ask("cancel", lambda: self.trial.session.cancel(place, seed))

    @rule()
    def roll_back(self) -> None:
        self.ask("rollback", self.trial.session.rollback)

    @rule(steps=st.integers(1, 6))
    def train(self, steps: int) -> None:
        for _ in range(steps):
            if (batch := next(self.batches, None)) is not None:
                self.trial.session.step(batch)
                if self.trial.session.step_count % toy.STEPS_PER_EPOCH == 0:
                    self.trial.session.after_epoch()

    @rule()
    def save_and_load(self) -> None:
        folder = Path(self.folder.name)
        self.trial.session.save(folder)
        before = self.trial.digest()
        self.trial = RECIPE.build(on_event=self.heard.append)
        self.trial.session.load(folder)
        assert self.trial.digest() == before

    def ask(self, what: str, request: Callable[[], Any]) -> None:
        """A request is carried out, answered by a refusal, or refused by one of Esper's errors."""
        try:
            is_accepted = request().accepted
        except EsperError:
            is_accepted = False
        Commands.seen[f"{what} {'done' if is_accepted else 'refused'}"] += 1

    @invariant()
    def what_was_told_is_what_is(self) -> None:
        """Every transition in the log is in the table, and all of them lead to the seeds' states and versions."""
        told = told_by(self.trial.session.events)
        for name, number in PLACES.items():
            state = self.trial.run.places[name].state
            for seed in range(number):
                name_told, version = told.get((name, seed), REST)
                assert State(int(state.lifecycle[seed])).name == name_told
                assert int(state.version[seed]) == version


def told_by(events: list[dict[str, Any]]) -> dict[tuple[str, int], tuple[str, int]]:
    """State and version of each seed that has moved, by a log; each arm begins where the run is, and the run takes over
    where the arm has ended that it adopts."""
    told: dict[tuple[str, int], tuple[str, int]] = {}
    tried: dict[tuple[str, int], tuple[str, tuple[str, int]]] = {}  # the arm, and where it is
    for event in events:
        if event["event"] != "transition":
            continue
        assert State[event["target"]] in TRANSITIONS[State[event["source"]]], event
        for seed in _seeds(event["seed_id"], PLACES[event["layer_id"]]):
            key, arm, now = (event["layer_id"], seed), event["arm"], (event["target"], event["version"])
            before, (last_arm, in_arm) = told.get(key, REST), tried.get(key, (None, REST))
            if arm is not None:
                before = in_arm if arm == last_arm else before
                tried[key] = arm, now
            else:
                is_adopted = event["source"] == State.EVALUATING.name != before[0] and last_arm is not None
                before, told[key] = in_arm if is_adopted else before, now
                tried.pop(key, None)
            assert (before[0], before[1] + 1) == (event["source"], event["version"]), event
    return told


def _seeds(seed_id: Any, number: int) -> list[int]:
    return list(range(number)) if seed_id == "all" else list(seed_id) if isinstance(seed_id, list) else [seed_id]


@pytest.mark.parametrize("stream", few(range(STREAMS), [0]))
def test_no_order_of_commands_loses_or_doubles_a_transition(stream, record_property):
    examples = amount(20_000 // STREAMS)
    Commands.seen.clear()
    run_state_machine_as_test(
        hypothesis.seed(stream)(Commands),
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    asked = ", ".join(f"{name} {number}" for name, number in sorted(Commands.seen.items()))
    record_property("faults", f"{examples} orders ({asked})")
    assert any(name == "germinate done" for name in Commands.seen)
