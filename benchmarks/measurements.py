"""Benchmarks that measure several things: one is chosen, and its result kept with the machine it was measured on."""

import argparse
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"


def keep(group: str, name: str, found: Any) -> None:
    """Write a result, plain values, to ``benchmarks/results/GROUP/NAME.json``, and print it."""
    text = json.dumps({"machine": machine(), "result": found}, indent=2)
    (RESULTS / group).mkdir(parents=True, exist_ok=True)
    (RESULTS / group / f"{name}.json").write_text(text + "\n")
    print(text)


def main(group: str, measurements: Mapping[str, str]) -> None:
    """Take one word, measure that, and keep it.

    Args:
        group: the package ``benchmarks.GROUP``.
        measurements: what its modules measure by their ``measure()``, by their names; dashes for underscores.
    """
    told = "; ".join(f"{name}: {text}" for name, text in measurements.items())
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{group}")
    parser.add_argument("what", choices=measurements, help=told)
    what = parser.parse_args().what
    keep(group, what, import_module(f"benchmarks.{group}.{what.replace('-', '_')}").measure())
