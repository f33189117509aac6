"""Questions of many runs in front of a few controllers, in virtual time: service times are those that were measured."""

import heapq
import random
from collections.abc import Sequence

from benchmarks.scaling.light import percentile


def waits(
    runs: int, period_s: float, controllers: int, service_s: Sequence[float], questions: int = 20_000, seed: int = 0
) -> dict[str, float]:
    """Seconds from question to decision, of runs that ask once in a period, each at a time of its own.

    Args:
        runs: how many.
        period_s: between two questions of one run.
        controllers: that share the questions; each question goes to the first one that is free.
        service_s: seconds for one question, of which each question draws one.
        questions: how many of them are looked at.
        seed: of moments and draws.

    Returns:
        ``load``, the share of the controllers' time that is taken, and the waits' ``p50`` and ``p99``. From a load of
        1 on the queue grows without end, and the waits say only how far it grew.
    """
    chance = random.Random(seed)
    free, now, found = [0.0] * controllers, 0.0, []
    for _ in range(questions):
        now += chance.expovariate(runs / period_s)
        start = max(now, heapq.heappop(free))
        end = start + chance.choice(service_s)
        heapq.heappush(free, end)
        found.append(end - now)
    load = runs / period_s * sum(service_s) / len(service_s) / controllers
    return {"load": load, "p50": percentile(found, 0.5), "p99": percentile(found, 0.99)}
