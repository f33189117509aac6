"""``python -m benchmarks.scaling WHAT``: what Esper takes on many GPUs.

``sizes``, ``counting``, ``exchanges`` and ``control`` measure, and keep what they have found in
``benchmarks/results/scaling``; ``tables`` computes the tables of ``docs/scaling.md`` from that, and draws its picture.
"""

import argparse
from importlib import import_module

from benchmarks.measurements import keep
from benchmarks.scaling import tables

MEASURED = ("sizes", "counting", "exchanges", "control")


def main() -> None:
    """Measure one thing and keep it, or show what all of them say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*MEASURED, "tables"])
    what = parser.parse_args().what
    if what == "tables":
        tables.show()
    else:
        keep("scaling", what, import_module(f"benchmarks.scaling.{what}").measure())


if __name__ == "__main__":
    main()
