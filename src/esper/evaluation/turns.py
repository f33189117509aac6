"""Who is measured when: two sides take turns, in an order that nobody can foresee."""

import random
from collections.abc import Iterator
from typing import Literal

Side = Literal["a", "b"]


def blocks(seed: int) -> Iterator[tuple[Side, Side, Side, Side]]:
    """Orders of blocks without end: ABBA or BAAB, each drawn anew.

    Within a block a drift of the machine that is linear in time falls out. Which side stands outside is drawn, so that
    two sides that are alike have differences that are as likely positive as negative, whatever else the machine does:
    that is what :mod:`esper.evaluation.sequential` asks for. Orders that alternate would fall in with a
    disturbance of their period.
    """
    draw = random.Random(seed)
    while True:
        yield ("a", "b", "b", "a") if draw.random() < 0.5 else ("b", "a", "a", "b")
