"""Names, labels and how many series there can be."""

import re
from dataclasses import replace

import pytest

from esper.contracts.events import EVENTS
from esper.observability.metrics.catalogue import METRICS, RULES
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.series import MAX_LAYERS, MAX_RUNS, OTHER, SILENT_S, samples, status
from esper.tamiyo import shield
from tests.observability.events import ended, move


def run_of(layers: int, seeds: int, name: str = "run", time: float = 1.0) -> RunState:
    """A run in which every layer has grown, has quarantined seeds, and has live grafts."""
    state = RunState(name)
    place = {"kind": "layer", "covers": [], "inputs": 1, "outputs": seeds, "seeds": seeds}
    places = [{"layer_id": f"layer{number}", **place} for number in range(layers)]
    model = {"event": "model", "time": time, "step": 0, "planned_steps": 100, "type": "Net", "parameters": 10}
    state.hear({**model, "modules": [], "places": places})
    grafts = {one["layer_id"]: {"live": 1, "alpha": 0.5} for one in places}
    vitals = {
        "event": "vitals",
        "time": time,
        "step": 50,
        "arm": None,
        "seconds": 1.0,
        "steps": 50,
        "step_seconds": 1.0,
    }
    memory = dict.fromkeys(("memory_bytes", "device_memory_bytes", "device_memory_peak_bytes"), 1)
    counts = {"step_times": [50, *[0] * 16], "gpu_utilisation": 0.5, "grown_parameters": 5, "grafts": grafts}
    state.hear(vitals | memory | counts)
    for one in places:
        layer = {"layer_id": one["layer_id"]}
        state.hear(move(1, "DORMANT", "GERMINATED", 10, **layer))
        state.hear(move(1, "GERMINATED", "ROLLED_BACK", 20, **layer))
        state.hear({"event": "fault", "step": 10, **layer, "lifecycles": []})
        for outcome in ("FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"):
            state.hear(ended(1, 10, 20, outcome, **layer))
    state.last_seen = time
    assert state.unreadable == 0
    return state


def test_the_number_of_series_is_bounded_for_1000_layers_of_10000_seeds_in_50_runs():
    one_run = run_of(1000, 10_000)
    found = samples([replace(one_run, run=f"run{number}") for number in range(50)])
    lines = 0
    for one in found:
        lines += len(one.value.bounds) + 3 if METRICS[one.name].kind == "histogram" else 1
    assert len({(one.name, one.labels) for one in found}) == len(found)
    assert 50 * 200 < lines < 50 * 700
    assert {len(one.labels) for one in found if one.name == "esper_alpha"} == {2}


def test_what_lies_beyond_the_bound_is_added_up():
    layers = MAX_LAYERS + 10
    found = {(one.name, *one.labels): one.value for one in samples([run_of(layers, 7)])}
    assert found["esper_awake_seeds", "run", "layer0"] == 7
    assert found["esper_awake_seeds", "run", OTHER] == 70
    assert found["esper_lifecycles_total", "run", OTHER, "CULLED"] == 10
    assert found["esper_live_grafts", "run", OTHER] == 10
    assert ("esper_alpha", "run", OTHER) not in found  # means cannot be added


def test_runs_beyond_the_bound_are_added_up_and_the_latest_are_shown():
    runs = [run_of(2, 3, f"run{number}", time=number) for number in range(MAX_RUNS + 5)]
    for run in runs:
        run.flags = {"message_bus": True}
    found = {(one.name, *one.labels): one.value for one in samples(runs)}
    assert ("esper_step", "run4") not in found
    assert found["esper_step", "run5"] == 50
    assert found["esper_step", OTHER] == 250
    assert found["esper_awake_seeds", OTHER, OTHER] == 5 * 2 * 3
    assert found["esper_flag", "run5", "message_bus"] == 1
    beyond = [
        key for key in found if key[1] == OTHER and key[0] in ("esper_train_loss", "esper_run_info", "esper_flag")
    ]
    assert beyond == []  # nor can truths and means


def test_without_bounds_there_would_be_far_more(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr("esper.observability.metrics.series.MAX_LAYERS", 10**6)
    assert len(samples([run_of(1000, 10_000)])) > 5000


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_names_and_labels_are_as_prometheus_wants_them(metric):
    assert re.fullmatch(r"esper_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert set(metric.labels).isdisjoint({"seed", "seed_id", "le", "job", "instance"})
    assert metric.meaning.endswith(".")
    assert metric.source
    if metric.unit in ("s", "B"):
        assert {"s": "seconds", "B": "bytes"}[metric.unit] in metric.name


def test_what_a_metric_is_said_to_be_made_of_is_a_kind_of_line():
    words = {word for metric in METRICS.values() for word in re.findall(r"(\w+)\.\w+", metric.source)}
    assert words - EVENTS.keys() <= {"bus", "flags"}


def test_every_rule_of_the_shield_has_a_label():
    assert len(shield.RULES) + 1 == len(set(RULES) - {"other"})  # _rest is two: embargo and quarantine
    source = {rule.__code__.co_consts for rule in shield.RULES}
    words = {
        re.match(r"([A-Z]\w+): ", text).group(1).lower() for text in _texts(source) if re.match(r"[A-Z]\w+: ", text)
    }
    assert words == set(RULES) - {"other"}


def _texts(consts) -> list[str]:
    found = []
    for one in consts:
        found += [one] if isinstance(one, str) else _texts(one) if isinstance(one, tuple) else []
    return found


def test_a_run_that_is_silent_is_dead_unless_it_is_finished():
    run = run_of(1, 1, time=100.0)
    assert status(run, 100.0 + SILENT_S) == "running"
    assert status(run, 101.0 + SILENT_S) == "dead"
    assert status(run, None) == "running"
    run.is_finished = True
    assert status(run, 10_000.0) == "finished"
