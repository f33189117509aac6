"""``python -m benchmarks.rollout_kit WHAT`` measures what the rollout kit promises.

Results go to ``benchmarks/results/rollout_kit``. What there is stands in :data:`MEASUREMENTS`.
"""

from benchmarks.measurements import main

MEASUREMENTS = {
    "ab": "how often A against B names a winner where there is none, and finds what there is",
    "flags": "shares, stickiness and monotony of feature flags, and what a look at one takes",
    "legacy": "the old layer beside the new one: what they compute, and how long it takes",
    "migration": "files of the old layer, whole and broken, and migrations that are killed",
    "rollout": "replays: how often harm is stopped, and health aborted",
    "rollout-real": "forty runs from 1 to 100 percent, and a rollout that is taken back",
    "baseline": "how often esper baseline compare calls what is the same a regression, and finds one of a tenth",
}
"""Modules of this package; ``measure()`` of each gives its result."""

if __name__ == "__main__":
    main("rollout_kit", MEASUREMENTS)
