"""``python -m benchmarks.rollout_kit WHAT`` measures what the rollout kit promises.

Results go to ``benchmarks/results/rollout_kit``. What there is stands in :data:`SUBCOMMANDS`.
"""

import argparse
import importlib
import json
from pathlib import Path

from benchmarks.machine import machine

RESULTS = Path(__file__).parent.parent / "results" / "rollout_kit"

SUBCOMMANDS = {
    "ab": "how often A against B names a winner where there is none, and finds what there is",
    "flags": "shares, stickiness and monotony of feature flags, and what a look at one takes",
    "legacy": "the old layer beside the new one: what they compute, and how long it takes",
    "migration": "files of the old layer, whole and broken, and migrations that are killed",
    "rollout": "replays: how often harm is stopped, and health aborted",
    "rollout-real": "forty runs from 1 to 100 percent, and a rollout that is taken back",
    "baseline": "how often esper baseline compare calls what is the same a regression, and finds one of a tenth",
}
"""Modules of this package; ``measure()`` of each gives its result."""


def main() -> None:
    """Measure one thing and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=SUBCOMMANDS)
    what = parser.parse_args().what
    found = importlib.import_module(f"benchmarks.rollout_kit.{what.replace('-', '_')}").measure()
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "result": found}, indent=2)
    (RESULTS / f"{what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
