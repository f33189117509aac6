"""Lifecycles come and go: memory, files and threads stay as they are. In a process of their own: in one that has had
much memory a leak would find room."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.amount import SHARE, amount

ROOT = Path(__file__).parents[2]
MOST_BYTES = 16
"""Of memory for each lifecycle."""

LUMP = 2**20
"""Memory comes in pages, and a few of them at once."""

FLAT = 8 * LUMP
"""Of a process of half a gigabyte whose threads come and go, with an allocator for each."""


def churned(lifecycles: int, *options: str) -> tuple[int, bool]:
    """By how many bytes a process has grown, and whether it has as many files and threads as before."""
    command = [sys.executable, "-m", "tests.faults.churning", str(lifecycles), *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    more, is_as_before = json.loads(done.stdout)
    return more, is_as_before


def test_lifecycles_leave_nothing_behind(record_property):
    lifecycles = amount(100_000)
    more, is_as_before = churned(lifecycles)
    record_property("faults", f"{lifecycles} lifecycles, {more / lifecycles:.1f} bytes for each")
    assert is_as_before
    assert more <= max(MOST_BYTES * lifecycles, LUMP)


def test_a_leak_would_be_seen():
    """Negative control."""
    assert churned(1_000, "--leak")[0] > 2 * LUMP


def lived(seconds: float, *options: str) -> dict[str, float]:
    """What a process did in that time, and by how much it has grown meanwhile."""
    command = [sys.executable, "-m", "tests.faults.living", str(seconds), *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_a_process_that_trains_with_everything_on_stays_as_large(record_property):
    seconds = amount(3600) if SHARE == 1 else 4
    found = lived(seconds)
    told = f"in the last {found['runs']} runs {found['bytes'] / found['runs']:.0f} bytes for each"
    record_property("faults", f"{found['steps']} steps in {seconds} s with everything on: {told}")
    assert found["is_as_before"]
    assert found["bytes"] <= FLAT


def test_a_run_that_leaves_something_behind_would_be_seen():
    """Negative control."""
    found = lived(1, "--leak")
    assert found["bytes"] > FLAT
