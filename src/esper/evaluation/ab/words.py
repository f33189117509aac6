"""A comparison in words, for the console and the page."""

import math

from esper.evaluation.ab.metrics import Metric
from esper.evaluation.ab.record import Comparison
from esper.evaluation.ab.similarity import Similarity, worst
from esper.evaluation.ab.verdict import Finding, Verdict

COLUMNS = ("metric", "verdict", "A", "B", "difference", "interval", "effect size", "pairs")
READING = (
    "The difference is A - B, or for a ratio how much larger A is than B. The intervals hold at every look, and all at "
    "once; the effect size is in standard deviations of the differences."
)


def headline(comparison: Comparison) -> str:
    """What the primary metrics came to, in a sentence."""
    found = {metric.name: comparison.findings.get(metric.name) for metric in comparison.metrics if metric.is_primary}
    groups = {verdict: [name for name, one in found.items() if one and one.verdict is verdict] for verdict in Verdict}
    said = [f"{side} is better in {_listed(groups[side])}" for side in (Verdict.A, Verdict.B) if groups[side]]
    if names := groups[Verdict.EQUIVALENT]:
        said.append(f"A and B are equivalent in {_listed(names)}")
    if said and (names := groups[Verdict.INCONCLUSIVE]):
        said.append(f"nothing is known of {_listed(names)}")
    if not said and comparison.ended is None:
        return "Nothing is decided yet."
    return "; ".join(said or ["No difference was found, and none was ruled out"]) + "."


def story(comparison: Comparison) -> list[str]:
    """What has to be known besides, one sentence or two each."""
    a, b = comparison.names
    number = len(comparison.pairs)
    pairs = "1 pair" if number == 1 else f"{number} pairs"
    said = [f"A is {a}, B is {b}. {pairs} so far." if comparison.ended is None else f"A is {a}, B is {b}."]
    if comparison.ended is not None:
        said.append(f"It ended after {pairs}: {comparison.ended}.")
    if any(comparison.failures):
        units = [f"{side} in {count}" for side, count in zip("AB", comparison.failures, strict=True)]
        said.append(f"Units failed: {' and '.join(units)} of {pairs}. A pair with one is told below, and not compared.")
    if comparison.plan.is_null:
        said.append("A and B are the same: this checks the set-up, which must find no winner.")
    return said


def row(metric: Metric, found: Finding) -> list[str]:
    """The cells of :data:`COLUMNS`."""
    effect = "-" if found.effect_size is None else f"{found.effect_size:+.2f}"
    decided = f"{found.pairs}" if found.decided_after is None else f"{found.pairs}, decided after {found.decided_after}"
    return [
        metric.name if metric.is_primary else f"{metric.name} (not primary)",
        found.verdict,
        number(found.mean_a),
        number(found.mean_b),
        change(metric, found.difference),
        interval(metric, found),
        effect,
        decided,
    ]


def change(metric: Metric, value: float) -> str:
    """A difference, with its sign; that of a ratio in percent."""
    return f"{100 * math.expm1(value):+.2f} %" if metric.is_ratio else f"{value:+.4g}"


def interval(metric: Metric, found: Finding) -> str:
    """From where to where."""
    if math.isinf(found.low) and math.isinf(found.high):
        return "open yet"
    low, high = (change(metric, value) if math.isfinite(value) else "?" for value in (found.low, found.high))
    return f"{low} to {high}"


def number(value: float) -> str:
    """A value of a metric."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def outputs(comparison: Comparison) -> str:
    """How alike outputs were."""
    found = [pair.similarity for pair in comparison.pairs if isinstance(pair.similarity, Similarity)]
    over_all = worst(found)
    if over_all is None:
        reasons = dict.fromkeys(str(pair.similarity) for pair in comparison.pairs)
        return f"Outputs were not compared: {'; '.join(reasons) or 'no pair is complete yet'}."
    said = (
        f"For the same inputs the outputs of A and B differ by {over_all.max_absolute:.3g} at most in {len(found)} "
        f"pairs, and by {over_all.max_relative:.3g} of the largest number in them."
    )
    if over_all.equal_predictions is None:
        return said
    return f"{said} {over_all.equal_predictions:.2%} of their predictions are the same."


def progress(comparison: Comparison) -> str:
    """The newest pair in a line."""
    pair = comparison.pairs[-1]
    said = [f"pair {len(comparison.pairs)}, seed {pair.seed}, {pair.order}:"]
    said += [f"{side} failed ({one.failed});" for side, one in (("A", pair.a), ("B", pair.b)) if one.failed]
    told = []
    for metric in comparison.metrics:
        found = comparison.findings.get(metric.name)
        if metric.is_primary and found is not None:
            change_ = f"{change(metric, found.difference)} ({interval(metric, found)})"
            told.append(f"{metric.name} {change_} {found.verdict}")
    return " ".join([*said, "; ".join(told)]).rstrip()


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
