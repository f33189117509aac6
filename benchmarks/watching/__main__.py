"""``python -m benchmarks.watching WHAT`` measures one thing; results go to ``benchmarks/results/watching``."""

import argparse
import json
from importlib import import_module
from pathlib import Path

from benchmarks.machine import machine

RESULTS = Path(__file__).parent.parent / "results" / "watching"

MEASUREMENTS = {
    "overhead": "what a run pays for being watched",
}
"""By name, of a module here whose ``measure()`` returns plain values."""


def main() -> None:
    """Measure one thing and keep it."""
    told = "; ".join(f"{name}: {text}" for name, text in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASUREMENTS, help=told)
    what = parser.parse_args().what
    found = import_module(f"benchmarks.watching.{what}").measure()
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "result": found}, indent=2)
    (RESULTS / f"{what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
