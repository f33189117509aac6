"""Runs a comparison: pair after pair, until it is decided."""

import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.evaluation.ab import record
from esper.evaluation.ab.metrics import LATENCY, metrics_of
from esper.evaluation.ab.record import SIDES, STUCK_AFTER, Arrived, Comparison, Pair, Plan
from esper.evaluation.ab.similarity import Similarity, similarity
from esper.evaluation.ab.subject import Subject, Unit, UnitFailedError
from esper.evaluation.ab.verdict import Verdict, finding, lopsided


class ABTestRunner:
    """Compares A with B in pairs of units with the same seed.

    Who goes first is drawn anew for every pair, and for every round of laps within it. If A and B are alike, each
    difference is then as likely positive as negative, whatever the machine does meanwhile; were they to alternate
    strictly, a disturbance with the same rhythm would fall on one side.

    Args:
        a, b: the sides.
        plan: how they are compared.
        directory: where ``ab.json`` is kept, from which an interrupted comparison goes on; None keeps nothing.
        on_pair: hears of every pair.

    Raises:
        ConfigError: if A and B are the same and the plan is no check of the set-up, or the other way round; or the
            directory holds another comparison.
    """

    def __init__(
        self,
        a: Subject,
        b: Subject,
        plan: Plan,
        directory: Path | None = None,
        on_pair: Callable[[Comparison], None] = lambda comparison: None,
    ) -> None:
        self._subjects, self._directory, self._on_pair = dict(zip(SIDES, (a, b), strict=True)), directory, on_pair
        if (a.identity == b.identity) != plan.is_null:
            raise ConfigError(
                f"--null checks the set-up with A and B the same, but {a.name} and {b.name} differ. Leave --null out."
                if plan.is_null
                else f"A and B are the same: {a.name} and {b.name}. Name two that differ, or check the set-up "
                "by --null."
            )
        new = Comparison(plan, (a.name, b.name), (a.identity, b.identity))
        stored = None if directory is None else record.read(directory)
        self._comparison = new if stored is None else _continued(stored, new)

    def run(self) -> Comparison:
        """Go on until every primary metric is decided, or nothing can be decided any more.

        Raises:
            ConfigError: if a side can never come to a result, or a wish names no metric; nothing is written then.
        """
        while self._comparison.ended is None:
            pair = self._pair()
            self._comparison = _judged(self._comparison, pair)
            if self._directory is not None:
                record.write(self._directory, self._comparison)
            self._on_pair(self._comparison)
        return self._comparison

    def _pair(self) -> Pair:
        plan, number = self._comparison.plan, len(self._comparison.pairs)
        drawn = random.Random(f"{plan.first_seed} {number}")
        order, seed = "".join(drawn.sample(SIDES, 2)), plan.first_seed + number
        arrived: dict[str, Arrived] = {}
        units: dict[str, Unit] = {}
        alike: Similarity | str = "a unit failed"
        with ExitStack() as stack:
            for side in order:
                try:
                    units[side] = stack.enter_context(self._subjects[side].measure(seed))
                except UnitFailedError as error:
                    arrived[side] = Arrived(failed=str(error))
            if len({unit.lap is None for unit in units.values()}) > 1:
                raise ConfigError("One side gives metrics and the other a callable to time. Let both give the same.")
            found = _measured(units, plan.laps, drawn)
            arrived |= found
            if len(found) == 2 and all(one.failed is None for one in found.values()):
                a, b = (units[side].outputs for side in SIDES)
                alike = similarity(a and a(), b and b())
        return self._checked(Pair(seed, order, arrived["A"], arrived["B"], alike), units)

    def _checked(self, pair: Pair, units: dict[str, Unit]) -> Pair:
        """The pair, with its metrics held against those of the pairs before it."""
        if not self._comparison.metrics and pair.is_complete:
            assert pair.a.metrics is not None
            assert pair.b.metrics is not None
            if one_sided := sorted(pair.a.metrics.keys() ^ pair.b.metrics.keys()):
                has, lacks = SIDES if one_sided[0] in pair.a.metrics else SIDES[::-1]
                raise ConfigError(f"{has} measures {one_sided[0]!r}, and {lacks} does not. Let both measure the same.")
            metrics = metrics_of(
                pair.a.metrics, units["A"].primary, self._comparison.plan.wishes, self._comparison.plan.alpha
            )
            self._comparison = replace(self._comparison, metrics=metrics)
        return replace(pair, a=self._fitting(pair.a), b=self._fitting(pair.b))

    def _fitting(self, unit: Arrived) -> Arrived:
        """The unit, failed if it does not have what is compared."""
        if unit.metrics is None:
            return unit
        for metric in self._comparison.metrics:
            if metric.name not in unit.metrics:
                return Arrived(failed=f"there is no {metric.name}")
            if metric.is_ratio and unit.metrics[metric.name] <= 0:
                return Arrived(failed=f"{metric.name} is {unit.metrics[metric.name]}: ratios need it above 0")
        return unit


def _measured(units: dict[str, Unit], laps: int, drawn: random.Random) -> dict[str, Arrived]:
    """Metrics of units; where laps are timed, in rounds of one lap a side whose order is drawn."""
    timed = [side for side, unit in units.items() if unit.lap is not None]
    times: dict[str, list[float]] = {side: [] for side in timed}
    failed: dict[str, Arrived] = {}
    for _ in range(laps if timed else 0):
        for side in drawn.sample(timed, len(timed)):
            lap = units[side].lap
            if side in failed or lap is None:
                continue
            try:
                times[side].append(lap())
            except UnitFailedError as error:
                failed[side] = Arrived(failed=str(error))
    latency = {side: {LATENCY: 1e6 * statistics.median(times[side])} for side in timed if side not in failed}
    return {
        side: failed.get(side) or Arrived(metrics={**unit.metrics, **latency.get(side, {})})
        for side, unit in units.items()
    }


def _judged(comparison: Comparison, pair: Pair) -> Comparison:
    """The comparison after one more pair."""
    pairs = (*comparison.pairs, pair)
    complete = [(one.a.metrics, one.b.metrics) for one in pairs if one.is_complete]
    findings = {}
    for metric in comparison.metrics:
        values = [(a[metric.name], b[metric.name]) for a, b in complete if a is not None and b is not None]
        if values:
            findings[metric.name] = finding(metric, values, comparison.findings.get(metric.name))
    one_sided = [
        "A" if one.b.failed is None else "B" for one in pairs if (one.a.failed is None) != (one.b.failed is None)
    ]
    suspicion = comparison.suspicion or lopsided(one_sided)
    judged = replace(comparison, pairs=pairs, findings=findings, suspicion=suspicion)
    stuck = None if judged.stuck is None else f"{judged.stuck} failed in {STUCK_AFTER} pairs in a row"
    return replace(judged, ended=stuck or _ended(judged))


def _ended(comparison: Comparison) -> str | None:
    if comparison.suspicion is not None:
        return "it is suspect"
    primary = [comparison.findings.get(metric.name) for metric in comparison.metrics if metric.is_primary]
    if primary and all(one is not None and one.verdict is not Verdict.INCONCLUSIVE for one in primary):
        return "every primary metric is decided"
    if len(comparison.pairs) >= comparison.plan.max_pairs:
        return "no more were asked for"
    return None


def _continued(stored: Comparison, new: Comparison) -> Comparison:
    """A comparison that goes on, perhaps to another number of pairs, or with what made a side fail put right."""
    for what, old, wanted in (
        ("A", stored.identities[0], new.identities[0]),
        ("B", stored.identities[1], new.identities[1]),
        ("--alpha", stored.plan.alpha, new.plan.alpha),
        ("--first-seed", stored.plan.first_seed, new.plan.first_seed),
        ("number of --laps", stored.plan.laps, new.plan.laps),
        ("choice of metrics and margins", stored.plan.wishes, new.plan.wishes),
    ):
        if old != wanted:
            raise ConfigError(
                f"The comparison in this directory was begun with another {what}. Name another directory by --output."
            )
    going_on = replace(stored, plan=new.plan, names=new.names)
    return replace(going_on, ended=_ended(going_on))
