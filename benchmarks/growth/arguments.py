"""Options that every benchmark of cells has."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.growth.rows import ROWS

RESULTS = Path(__file__).parent.parent / "results" / "growth"


def add_options(parser: argparse.ArgumentParser, seeds: str) -> None:
    """Which cells, by how many processes, and where they are kept.

    Args:
        parser: takes them.
        seeds: those that are computed where none are given.
    """
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="left out: those of each case")
    parser.add_argument("--seeds", type=_seeds, help=f"N or FIRST-LAST; left out: {seeds}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where cells and results are kept")
    parser.add_argument("--tables", action="store_true", help="compute nothing: only tell what the cells say")
    parser.add_argument("--fresh", action="store_true", help="forget the cells of these cases, rows and seeds")


def _seeds(text: str) -> Sequence[int]:
    """``"3"`` or ``"0-4"``."""
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is empty: give the first seed, then the last")
    return found


def above_0(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and finite")
    return number


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below another one."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        return number

    return whole_number
