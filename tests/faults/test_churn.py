"""Lifecycles come and go: memory, files and threads stay as they are. In a process of their own: in one that has had
much memory a leak would find room."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.amount import SHARE, amount

ROOT = Path(__file__).parents[2]
MOST_BYTES = 16
"""Of memory for each lifecycle."""

LUMP = 2**20
"""Memory comes in pages, and a few of them at once."""

FLAT = 8 * LUMP
"""Of a process of half a gigabyte whose threads come and go, with an allocator for each."""


def found(module: str, *amounts: float) -> list[Any]:
    """What a process tells of so much that leaves nothing behind, and of so much that leaves something."""
    command = [sys.executable, "-m", f"tests.faults.{module}", *map(str, amounts)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    told: list[Any] = json.loads(done.stdout)
    return told


LIFECYCLES = amount(100_000)


@pytest.fixture(scope="module")
def churned():
    """By how many bytes a process has grown, and whether it has as many files and threads as before."""
    return found("churning", LIFECYCLES, 1000)


def test_lifecycles_leave_nothing_behind(churned, record_property):
    more, is_as_before = churned[0]
    record_property("faults", f"{LIFECYCLES} lifecycles, {more / LIFECYCLES:.1f} bytes for each")
    assert is_as_before
    assert more <= max(MOST_BYTES * LIFECYCLES, LUMP)


def test_a_leak_would_be_seen(churned):
    """Negative control."""
    assert churned[1][0] > 2 * LUMP


SECONDS = amount(3600) if SHARE == 1 else 4


@pytest.fixture(scope="module")
def lived():
    """What a process did in that time, and by how much it has grown meanwhile."""
    return found("living", SECONDS, 1)


def test_a_process_that_trains_with_everything_on_stays_as_large(lived, record_property):
    one = lived[0]
    told = f"in the last {one['runs']} runs {one['bytes'] / one['runs']:.0f} bytes for each"
    record_property("faults", f"{one['steps']} steps in {SECONDS} s with everything on: {told}")
    assert one["is_as_before"]
    assert one["bytes"] <= FLAT


def test_a_run_that_leaves_something_behind_would_be_seen(lived):
    """Negative control."""
    assert lived[1]["bytes"] > FLAT
