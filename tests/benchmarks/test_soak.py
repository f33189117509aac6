"""The soak: seeds live at random, the same each time, and a leak is seen."""

from itertools import count

import torch

from benchmarks.soak import __main__ as soak


def test_two_runs_hold_the_same_bytes_while_grafts_come_and_go(monkeypatch):
    monkeypatch.setattr(soak, "CHECKED", 30)
    monkeypatch.setattr(soak, "EVERY", 1)
    first, second = (soak.run(torch.device("cpu"), 60, 0, lambda: 1) for _ in range(2))
    assert first == second
    assert len(first["digests"]) == 2
    assert {"GRAFTING", "CULLED"} <= first["moves"].keys()
    assert first["is_finite"]
    assert first["steps_with_other_memory"] == []
    assert first["digests"] != soak.run(torch.device("cpu"), 60, 1, None)["digests"]


def test_memory_that_grows_while_nothing_changes_is_a_leak(monkeypatch):
    monkeypatch.setattr(soak, "EVERY", 4)
    leaking = count()
    assert soak.run(torch.device("cpu"), 12, 0, lambda: next(leaking))["steps_with_other_memory"]
