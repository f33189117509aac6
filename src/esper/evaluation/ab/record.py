"""What is known of a comparison, as it lies in ``ab.json``: state to go on from, and the result."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.evaluation.ab.metrics import Metric, Wishes
from esper.evaluation.ab.similarity import Similarity
from esper.evaluation.ab.verdict import Finding, Verdict
from esper.evaluation.kept_state import read_kept
from esper.whole_file import write_whole

FORMAT = 1
STATE = "ab.json"
SIDES = ("A", "B")
STUCK_AFTER = 5
"""Pairs in a row after which a side that came to no result in any of them is given up."""


@dataclass(frozen=True)
class Arrived:
    """What a unit came to: its metrics, or why it came to none."""

    metrics: Mapping[str, float] | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Pair:
    """A unit of each side, with the same seed.

    Args:
        seed: of both.
        order: which side went first: ``"AB"`` or ``"BA"``.
        a, b: what came of them.
        similarity: of their outputs, or why that is not known.
    """

    seed: int
    order: str
    a: Arrived
    b: Arrived
    similarity: Similarity | str

    @property
    def is_complete(self) -> bool:
        """Whether both sides have metrics."""
        return self.a.metrics is not None and self.b.metrics is not None


@dataclass(frozen=True)
class Plan:
    """How a comparison is made.

    Args:
        max_pairs: at which it ends.
        alpha: chance that any interval ever misses, all metrics together.
        first_seed: of the first pair; the next ones follow. It also draws who goes first.
        laps: timed in a unit, where latency is measured.
        wishes: what the user says of the metrics.
        is_null: whether A and B are meant to be the same, to check the set-up.
    """

    max_pairs: int = 30
    alpha: float = 0.05
    first_seed: int = 0
    laps: int = 20
    wishes: Wishes = field(default_factory=Wishes)
    is_null: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_pairs", 1), ("first_seed", 0), ("laps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must be above 0 and below 1, not {self.alpha}.")


@dataclass(frozen=True)
class Comparison:
    """A comparison, under way or over.

    Args:
        plan: how it is made.
        names, identities: of A and of B.
        metrics: that are measured; empty before the first complete pair.
        pairs: so far.
        findings: by metric.
        suspicion: why it is not to be trusted; None if nothing speaks against it.
        ended: why it is over; None while it is not.
    """

    plan: Plan
    names: tuple[str, str]
    identities: tuple[str, str]
    metrics: tuple[Metric, ...] = ()
    pairs: tuple[Pair, ...] = ()
    findings: Mapping[str, Finding] = field(default_factory=dict)
    suspicion: str | None = None
    ended: str | None = None

    @property
    def failures(self) -> tuple[int, int]:
        """Units of A and of B that came to no result."""
        return sum(pair.a.failed is not None for pair in self.pairs), sum(
            pair.b.failed is not None for pair in self.pairs
        )

    @property
    def stuck(self) -> str | None:
        """The side that failed in every one of the last pairs, if one did."""
        last = self.pairs[-STUCK_AFTER:]
        if len(last) == STUCK_AFTER:
            for side in SIDES:
                if all((pair.a if side == "A" else pair.b).failed is not None for pair in last):
                    return side
        return None

    @property
    def is_well(self) -> bool:
        """Whether it came to something that can be trusted; a check of the set-up must find no winner."""
        winners = [one for one in self.findings.values() if one.verdict in (Verdict.A, Verdict.B)]
        is_sound = bool(self.findings) and self.suspicion is None and self.stuck is None
        return is_sound and not (self.plan.is_null and winners)


def to_values(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values; a bound that is infinite is None."""
    values = {"format": FORMAT, **asdict(comparison), "failures": comparison.failures}
    for found in values["findings"].values():
        found |= {name: found[name] if math.isfinite(found[name]) else None for name in ("low", "high")}
    return values


def write(directory: Path, comparison: Comparison) -> None:
    """Write ``ab.json`` as a whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_values(comparison), indent=1, allow_nan=False) + "\n"
    write_whole(directory / STATE, text.encode())


def read(directory: Path) -> Comparison | None:
    """What :func:`write` wrote; None if there is nothing yet.

    Raises:
        ConfigError: if it is damaged, or of another version.
    """
    return read_kept(directory / STATE, FORMAT, _built)


def _built(values: dict[str, Any]) -> Comparison:
    plan = values["plan"]
    return Comparison(
        plan=Plan(**plan | {"wishes": _wishes(plan["wishes"])}),
        names=tuple(values["names"]),
        identities=tuple(values["identities"]),
        metrics=tuple(Metric(**one) for one in values["metrics"]),
        pairs=tuple(_pair(one) for one in values["pairs"]),
        findings={name: _finding(one) for name, one in values["findings"].items()},
        suspicion=values["suspicion"],
        ended=values["ended"],
    )


def _wishes(values: dict[str, Any]) -> Wishes:
    return Wishes(tuple(values["primary"]), tuple(values["more"]), tuple(values["less"]), values["margins"])


def _pair(values: dict[str, Any]) -> Pair:
    alike = values["similarity"]
    sides = {side: Arrived(**values[side]) for side in ("a", "b")}
    return Pair(**values | sides | {"similarity": alike if isinstance(alike, str) else Similarity(**alike)})


def _finding(values: dict[str, Any]) -> Finding:
    low, high = values["low"], values["high"]
    ends = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    return Finding(**values | ends | {"verdict": Verdict(values["verdict"])})
