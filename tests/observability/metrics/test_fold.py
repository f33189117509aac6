"""The fold: lines of a real run, whoever brings them, come to the same; and it says of the run what is so."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.events import EVENTS, STEP_BOUNDS_S
from esper.contracts.flags import FLAGS
from esper.contracts.flags import told as told_flags
from esper.contracts.lifecycle import State
from esper.flags import resolve
from esper.observability.metrics.fold import CURVE_POINTS, RunState
from esper.observability.metrics.over_bus import Runs
from esper.observability.metrics.series import samples
from esper.oona.codec import Codec
from esper.oona.url import open_bus
from esper.runtime.link.publisher import TelemetryPublisher
from tests.observability.events import candidate, ended, move
from tests.runtime.toy import Recipe, Script, Trial, growing

_names = itertools.count()


def told(*lines: dict[str, Any]) -> RunState:
    state = RunState("run")
    for line in lines:
        state.hear(line)
    assert state.unreadable == 0
    return state


MODEL = {
    **{"event": "model", "time": 1.0, "step": 0, "planned_steps": 100, "type": "Net", "parameters": 10, "modules": []},
    "places": [
        {"layer_id": name, "kind": "layer", "covers": [], "inputs": 1, "outputs": 8, "seeds": seeds}
        for name, seeds in (("", 3), ("0", 2))
    ],
}


class TestThreeCarriers:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory) -> tuple[Trial, Path, RunState, RunState]:
        """A run that has told a listener, a directory and a bus."""
        directory, url = tmp_path_factory.mktemp("run"), f"memory:fold-{next(_names)}"
        heard, publisher = RunState("run"), TelemetryPublisher(lambda: open_bus(url), Codec(), "run")
        config = growing(layers={"": 1, "0": 2}, keep_looks=(0.6, 0.8))
        trial = Recipe(config, policy=Script({1: ["", ("0", 1)]})).build(
            directory=directory, on_event=[heard.hear, publisher]
        )
        publisher.follow(trial.session)
        trial.train()
        trial.session.finish()
        assert publisher.close()
        runs, bus = Runs(lambda: open_bus(url), Codec()), open_bus(url)
        runs._hearing._hear([bus.subscribe(topic, "test", "one", start="oldest") for topic in ("run.event",)])
        return trial, directory, heard, runs._runs["run"]

    def test_a_directory_and_a_bus_tell_what_a_listener_hears(self, run):
        _, directory, heard, over_bus = run
        lines = [
            json.loads(line)
            for log in ("audit", "metrics")
            for line in (directory / f"{log}.jsonl").read_text().splitlines()
        ]
        read = told(*sorted(lines, key=lambda line: line["time"]))
        assert samples([over_bus]) == samples([read]) == samples([heard])
        assert over_bus.curve == read.curve == heard.curve

    def test_what_it_says_is_so(self, run):
        trial, _, state, _ = run
        session = trial.session
        assert (state.step, state.epoch) == (session.step_count, session.epoch)
        assert sum(state.flops.values()) == pytest.approx(session.train_flops, rel=0.05)  # the end judges once more
        assert state.is_finished
        assert state.ended == len(session.field_reports) > 1
        outcomes = [report.outcome for report in session.field_reports]
        assert state.fossilized == outcomes.count("FOSSILIZED")
        assert sum(state.step_times.counts) == session.step_count
        assert 0 < state.step_times.sum < 600
        assert state.grown_parameters == sum(place.arena.num_parameters for place in trial.run.places.values())
        tensors = [State(code).name for place in trial.run.places.values() for code in place.state.lifecycle.tolist()]
        assert state.states == {name: tensors.count(name) for name in set(tensors)}
        assert state.checkpoint["bytes"] > 1000


def test_within_an_arm_seeds_are_as_the_arm_has_them_and_after_it_as_they_were():
    lines = [
        MODEL,
        move(1, "DORMANT", "GERMINATED", 10),
        {"event": "round_begun", "step": 10, "round": 1, "end_step": 40, "candidates": [candidate(1)]},
        move(1, "GERMINATED", "TRAINING", 10, arm="round1/a"),
        move(1, "TRAINING", "GRAFTING", 12, arm="round1/a"),
    ]
    state = told(*lines)
    assert state.states == {"GRAFTING": 3, "DORMANT": 2}
    assert (state.trying.number, state.trying.begun_step) == (1, 10)
    arm_ended = {
        **{"event": "arm_ended", "step": 40, "round": 1, "arm": "round1/a", "steps": 30, "arm_flops": 1},
        **dict.fromkeys(("select_loss", "twin_select_loss", "gate_loss", "twin_gate_loss"), 1.0),
        **{"passed": False, "twin_z": -1.5, "metric_gain": None},
    }
    state = told(*lines, arm_ended)
    assert state.states == {"GERMINATED": 3, "DORMANT": 2}
    assert state.gates == {"twin_z": -1.5}
    ended_round = {"event": "round_ended", "step": 40, "round": 1, "adopted": None, "reason": "lost"}
    state = told(*lines, arm_ended, move(1, "GERMINATED", "CULLED", 40), ended_round)
    assert state.states == {"CULLED": 3, "DORMANT": 2}
    assert state.awake_by_layer == {"": 3}
    assert state.candidates == {"failed": 1, "not_tried": 0}
    assert state.rounds == {("round", "refused"): 1}
    assert state.trying is None


def test_a_run_that_goes_on_within_a_round_tells_its_first_line_again_and_some_of_its_arms():
    def arm(name: str) -> dict[str, Any]:
        return {
            **{"event": "arm_ended", "step": 40, "round": 1, "arm": name, "steps": 30, "arm_flops": 1},
            **dict.fromkeys(("select_loss", "twin_select_loss", "gate_loss", "twin_gate_loss"), 1.0),
            **{"passed": False, "twin_z": -1.5, "metric_gain": None},
        }

    tried = [candidate(number) for number in (1, 2, 3, 4)]
    begun = {"event": "round_begun", "step": 10, "round": 1, "end_step": 40, "candidates": tried}
    ended = {"event": "round_ended", "step": 40, "round": 1, "adopted": None, "reason": "none"}
    state = told(MODEL, begun, arm("round1/a"), MODEL)
    assert state.trying is not None
    state = told(MODEL, begun, arm("round1/a"), MODEL, arm("round1/a"), arm("round1/b"), ended)
    assert state.candidates["not_tried"] == 2
    assert state.trying is None


def test_the_verdict_on_a_live_trial_is_counted_where_the_run_goes_on_within_it():
    begun = {"event": "trial_begun", "step": 10, "trial": 1, "candidates": [candidate(1)]}
    ended = {"event": "trial_ended", "step": 40, "trial": 1, "adopted": [candidate(1)], "reason": "won", "passed": True}
    assert told(MODEL, begun, MODEL, ended).candidates == {"passed": 1}


def test_the_oldest_lifecycle_is_as_old_as_it_is():
    epoch = {
        **{"event": "epoch", "epoch": 1, "step": 60, "lr": 0.1, "train_loss": 1.0, "val_loss": 1.0, "val_metric": None},
        **{"run_flops": 1, "arm_flops": 0, "judging_flops": 0},
    }
    state = told(MODEL, move(1, "DORMANT", "GERMINATED", 10), move(1, "GERMINATED", "TRAINING", 30), epoch)
    assert state.oldest_lifecycle_steps == 50
    assert told(MODEL, epoch).oldest_lifecycle_steps == 0
    over = [move(1, "TRAINING", "CULLED", 40), ended(1, 10, 40, "CULLED"), move(None, "CULLED", "DORMANT", 50)]
    assert told(MODEL, move(1, "DORMANT", "GERMINATED", 10), *over, epoch).oldest_lifecycle_steps == 0


def test_a_seed_is_as_long_in_its_state_as_it_is_and_may_stay_in_some():
    epoch = {
        **{"event": "epoch", "epoch": 1, "step": 60, "lr": 0.1, "train_loss": 1.0, "val_loss": 1.0, "val_metric": None},
        **{"run_flops": 1, "arm_flops": 0, "judging_flops": 0},
    }
    begun = [MODEL, move(1, "DORMANT", "GERMINATED", 10), move(1, "GERMINATED", "GRAFTING", 20)]
    assert told(*begun, epoch).state_age_steps == 40
    assert told(*begun, move(1, "GRAFTING", "STABILIZATION", 50), epoch).state_age_steps == 10
    for rest in ("FINE_TUNING", "CULLED", "ROLLED_BACK"):
        assert told(*begun, move(1, "GRAFTING", rest, 30), epoch).state_age_steps == 0


def test_a_quarantine_is_counted_and_seen():
    state = told(MODEL, move(1, "DORMANT", "GERMINATED", 10), move(1, "GERMINATED", "ROLLED_BACK", 20))
    assert state.quarantines == {"": 3}
    assert state.states["ROLLED_BACK"] == 3


def test_flags_of_a_store_that_cannot_be_used_are_in_doubt(tmp_path):
    store = tmp_path / "it failed: as it last was.json"  # a name that only sounds like it

    def state(text: str) -> RunState:
        store.write_text(text)
        return told({"event": "flags", "step": 0, "model_id": "m", "flags": told_flags(resolve("m", store, {}))})

    assert state('{"flags": {}}').flags_in_doubt == 0
    fails = {"if": [{"===": [{"var": "targetingKey"}, "m"]}, "nope", "on"]}  # for this model alone
    rule = {"state": "ENABLED", "variants": {"on": True}, "defaultVariant": "on", "targeting": fails}
    assert state(json.dumps({"flags": {"message_bus": rule}})).flags_in_doubt == 1
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        damaged = state("{")
    assert damaged.flags_in_doubt == len(FLAGS) == len(damaged.flags)


def test_curves_are_bounded_and_span_the_run():
    state = RunState("run")
    for epoch in range(1, 5001):
        state.hear(
            {
                **{"event": "epoch", "epoch": epoch, "step": epoch, "lr": 0.1, "train_loss": 1.0, "val_loss": None},
                **{"val_metric": None, "run_flops": 1, "arm_flops": 0, "judging_flops": 0},
            }
        )
    steps = [point["step"] for point in state.curve.points]
    assert CURVE_POINTS / 2 < len(steps) <= CURVE_POINTS
    assert steps[0] == 1
    assert steps[-1] > 4950
    assert len({second - first for first, second in itertools.pairwise(steps)}) == 1
    assert state.losses_not_finite == 5000


VITALS = {
    **{"event": "vitals", "step": 1, "arm": None, "seconds": 1.0, "steps": 0, "step_seconds": 0.0},
    **{"step_times": [0] * (len(STEP_BOUNDS_S) + 1), "grown_parameters": 0},
    **dict.fromkeys(("memory_bytes", "device_memory_bytes", "device_memory_peak_bytes", "gpu_utilisation")),
}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": 3},
        {"event": ["note"]},
        {"event": "epoch"},
        {"event": "transition", "step": "x"},
        {"event": "dreamt", "time": "soon"},
        {"event": "note", "text": "a sentence", "time": None},
        VITALS | {"bus": {"queue": "long"}},
        VITALS | {"bus": {"commands": []}},
    ],
)
def test_a_line_that_is_damaged_changes_nothing_but_a_count(line):
    state = told(MODEL)
    before = samples([state])
    state.hear(line)
    assert samples([state]) == before
    assert state.unreadable == 1


def test_vitals_without_damage_are_taken():
    """So that what is refused above is refused for its damage."""
    assert told(MODEL, VITALS | {"bus": {"queue": 1, "commands": {"refused": 2}}}).bus["queue"] == 1


def test_a_kind_of_a_newer_version_is_counted_as_other():
    assert told({"event": "dreamt", "time": 5.0}).kinds == {"other": 1}
    assert "other" not in EVENTS
