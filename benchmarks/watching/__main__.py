"""``python -m benchmarks.watching WHAT`` measures one thing; results go to ``benchmarks/results/watching``."""

from benchmarks.measurements import main

MEASUREMENTS = {
    "overhead": "what a run pays for being watched",
    "live": "how soon the live page answers while ten thousand seeds are told five times a second",
}
"""By name, of a module here whose ``measure()`` returns plain values."""

if __name__ == "__main__":
    main("watching", MEASUREMENTS)
