"""Metrics: which way is better, how two values are compared, and the share of the error each may use up."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from esper.contracts.errors import ConfigError, closest

LATENCY = "latency_us"
_LESS = {"loss", "error", "latency", "seconds", "time", "flops", "parameters", "memory", "bytes", "rmse", "perplexity"}
_MORE = {"accuracy", "r2", "score", "throughput", "f1", "auc", "precision", "recall"}
_RATIO = {"latency", "seconds", "time", "flops", "parameters", "memory", "bytes", "throughput"}
"""Words in the names of metrics: less is better, more is better, compared as a ratio."""
PRIMARY_SHARE = 0.8
"""Of ``alpha``, for the primary metrics together, where there are others."""


@dataclass(frozen=True)
class Metric:
    """One metric of a comparison.

    Args:
        name: as the subjects call it.
        is_more_better: which way is better.
        is_ratio: whether values are compared by the logarithm of A / B; otherwise by A - B.
        is_primary: whether the comparison goes on until it is decided.
        alpha: chance that its interval ever misses.
        margin: differences up to it count as none; of a ratio a share, 0.02 is 2 %. None: nothing is equivalent.
    """

    name: str
    is_more_better: bool
    is_ratio: bool
    is_primary: bool
    alpha: float
    margin: float | None

    @property
    def bound(self) -> float | None:
        """The margin in units of :meth:`difference`."""
        return self.margin if self.margin is None or not self.is_ratio else math.log1p(self.margin)

    def difference(self, a: float, b: float) -> float:
        """What tells A from B in one pair."""
        return math.log(a / b) if self.is_ratio else a - b


@dataclass(frozen=True)
class Wishes:
    """What the user says of the metrics; all else follows from their names.

    Args:
        primary: names of those that matter most.
        more, less: names of those of which more, or less, is better.
        margins: by name, a number, or a share with a percent sign.
    """

    primary: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    margins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := set(self.more) & set(self.less):
            raise ConfigError(f"--more and --less both name {min(both)!r}. Keep it in one of them.")
        for name, text in self.margins.items():
            _margin(name, text)


def metrics_of(names: Iterable[str], primary: tuple[str, ...], wishes: Wishes, alpha: float) -> tuple[Metric, ...]:
    """The metrics of a comparison, from what its first pair has measured.

    Args:
        names: of all metrics.
        primary: those that matter most unless the wishes name others.
        wishes: what the user says.
        alpha: of all metrics together.

    Raises:
        ConfigError: if a wish names no metric, or it cannot be told which way is better.
    """
    found = tuple(names)
    for option, wanted in {"primary": wishes.primary, "more": wishes.more, "less": wishes.less}.items():
        for name in wanted:
            _check_known(f"--{option}", name, found)
    for name in wishes.margins:
        _check_known("--margin", name, found)
    first = wishes.primary or primary or found
    rest = len(found) - len(first)
    share = alpha * (PRIMARY_SHARE if rest else 1.0) / len(first)
    return tuple(_metric(name, wishes, name in first, share, alpha, rest) for name in found)


def _metric(name: str, wishes: Wishes, is_primary: bool, share: float, alpha: float, rest: int) -> Metric:
    words = set(name.lower().replace("-", "_").split("_"))
    is_ratio = bool(words & _RATIO)
    is_more, is_less = name in wishes.more, name in wishes.less
    if not (is_more or is_less):
        is_more, is_less = bool(words & _MORE), bool(words & _LESS)
    if is_more == is_less:
        raise ConfigError(
            f"The name of the metric {name!r} does not tell which way is better. Say so: --more {name} or "
            f"--less {name}."
        )
    margin, is_share = _margin(name, wishes.margins[name]) if name in wishes.margins else (None, is_ratio)
    if is_share != is_ratio:
        kind, wanted = ("ratio", f"--margin {name}=2%") if is_ratio else ("difference", f"--margin {name}=0.01")
        raise ConfigError(f"--margin: {name} is compared by {kind}. Give for example {wanted}.")
    return Metric(
        name, is_more, is_ratio, is_primary, share if is_primary else alpha * (1 - PRIMARY_SHARE) / rest, margin
    )


def _margin(name: str, text: str) -> tuple[float, bool]:
    """The number, and whether it is a share."""
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if is_share else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--margin {name}={text}: a margin is a number above 0, or a share such as 2%.")
    return value, is_share


def _check_known(option: str, name: str, found: tuple[str, ...]) -> None:
    if name not in found:
        raise ConfigError(f"{option}: nothing measures {name!r}. {closest(name, found)}")
