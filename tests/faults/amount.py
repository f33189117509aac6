"""How many faults are tried: a hundredth in ``make test``, all in ``make test-faults``."""

import os

SHARE = float(os.environ.get("ESPER_FAULTS", "0.01"))


def amount(of: int) -> int:
    """The share of a number that is tried."""
    return max(1, round(SHARE * of))
