"""What runs come to: scores by family and overall, and what each controller spent, tried and kept."""

# F families, S seeds

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.controller.running import HEURISTIC, NEVER, Run
from benchmarks.growth.claims import holm, p_above
from esper.contracts.errors import DataError
from esper.learning.episodes import Frontier

Runs = Mapping[tuple[str, int, str], Run]
"""By family, seed and policy."""

WORSE = 0.3
"""Points by which a family may be behind."""

LEVEL = 0.05


@dataclass(frozen=True)
class Pairs:
    """Family and seed pairs of which everybody's runs are there.

    Args:
        seeds: by family, in the order of the exam.
        scores: by policy and family: points for each seed.
        runs: all of them.
    """

    seeds: Mapping[str, Sequence[int]]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    runs: Runs

    def of(self, policy: str, families: Sequence[str] | None = None) -> list[Run]:
        """Runs of a policy, of some families or of all."""
        chosen = self.seeds if families is None else families
        return [self.runs[family, seed, policy] for family in chosen for seed in self.seeds[family]]

    def differences(self, policy: str) -> dict[str, NDArray[np.float64]]:
        """Points by which a policy is ahead of the heuristic, by family, for each seed."""
        mine, theirs = self.scores[policy], self.scores[HEURISTIC]
        return {family: np.subtract(mine[family], theirs[family]) for family in self.seeds}


def pairs(runs: Runs, families: Sequence[str], policies: Sequence[str]) -> Pairs:
    """Runs that can be compared.

    Args:
        runs: of some families and seeds.
        families: in the order in which they are told.
        policies: who is compared; never growing is what scores are measured from.

    Raises:
        DataError: if there are none, or runs of one pair were tested on different samples.
    """
    every = [NEVER, *(name for name in policies if name != NEVER)]
    seeds: dict[str, list[int]] = {}
    for family in families:
        known = sorted({seed for name, seed, _ in runs if name == family})
        whole = [seed for seed in known if all((family, seed, one) in runs for one in every)]
        for seed in whole:
            if len({runs[family, seed, one]["test"]["digest"] for one in every}) > 1:
                raise DataError(
                    f"Runs of {family}, seed {seed}, were tested on different samples, so that they cannot be compared:"
                    " texts differ with the version of Python. Delete those of another machine."
                )
        if whole:
            seeds[family] = whole
    if not seeds:
        raise DataError("There is no family and seed of which all runs are there. Let the exam run on.")
    scores = {
        policy: {family: [points(runs, family, seed, policy) for seed in seeds[family]] for family in seeds}
        for policy in every
    }
    return Pairs(seeds, scores, runs)


def points(runs: Runs, family: str, seed: int, policy: str) -> float:
    """Hundredths of the test loss that were saved, of the host alone at equal FLOPs; at worst -50."""
    alone, run = runs[family, seed, NEVER]["frontier"], runs[family, seed, policy]
    saved = Frontier(alone["flops"], alone["losses"]).saved(run["loss"], run["flops"])
    return round(100 * saved, 9) + 0.0  # what logarithms leave of a difference of nothing is not one


def by_family(compared: Pairs, examinee: str) -> dict[str, dict[str, Any]]:
    """Both controllers on every family; p-values are for being worse, by flips of signs over seeds, Holm-corrected."""
    ahead = compared.differences(examinee)
    worse = {family: p_above((-values).tolist()) if (values < 0).any() else 1.0 for family, values in ahead.items()}
    corrected = dict(zip(worse, holm(list(worse.values())), strict=True))
    return {
        family: {
            "seeds": len(values),
            **_host(compared.of(NEVER, [family])),
            HEURISTIC: _summary(compared, HEURISTIC, [family]),
            "examinee": _summary(compared, examinee, [family]),
            "difference": float(values.mean()),
            "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
            "p_worse": worse[family],
            "p_worse_holm": corrected[family],
        }
        for family, values in ahead.items()
    }


def overall(compared: Pairs, examinee: str) -> dict[str, Any]:
    """Both controllers on all families, each of the same weight; p-values are for being better."""
    ahead = compared.differences(examinee)
    means = [float(values.mean()) for values in ahead.values()]
    return {
        "families": len(means),
        "pairs": sum(map(len, ahead.values())),
        HEURISTIC: _summary(compared, HEURISTIC, list(ahead)),
        "examinee": _summary(compared, examinee, list(ahead)),
        "difference": float(np.mean(means)),
        "p_families": p_above(means),
        "p_pairs": p_above(np.concatenate(list(ahead.values())).tolist()),
    }


def _summary(compared: Pairs, policy: str, families: Sequence[str]) -> dict[str, float | int]:
    """Points and shares are means over families; ``tried`` and ``kept`` are sums."""
    runs = {family: compared.of(policy, [family]) for family in families}

    def mean(value: str, of: str, less: float = 0.0) -> float:
        return float(np.mean([np.mean([run[value] / run[of] - less for run in ours]) for ours in runs.values()]))

    cost = [np.mean([_cost(compared, run, policy) for run in ours]) for ours in runs.values()]
    return {
        "points": float(np.mean([np.mean(compared.scores[policy][family]) for family in families])),
        "cost": float(np.mean(cost)),
        "grown": mean("parameters", "host", 1.0),
        "tried": sum(run["tried"] for ours in runs.values() for run in ours),
        "kept": sum(run["kept"] for ours in runs.values() for run in ours),
        "runs_that_grew": sum(run["kept"] > 0 for ours in runs.values() for run in ours),
    }


def _cost(compared: Pairs, run: Run, policy: str) -> float:
    """FLOPs of arms and judging, relative to the run that never grew."""
    return float(run["probe_flops"] / compared.runs[run["family"], run["seed"], NEVER]["flops"])


def _host(runs: Sequence[Run]) -> dict[str, float]:
    """Size and length of the run without growth, and what longer ones gain; means over seeds."""
    means = {name: [run[name] for run in runs] for name in ("parameters", "steps", "targets")}
    return {name: float(np.mean(values)) for name, values in (means | {"longer": list(map(_longer, runs))}).items()}


def _longer(run: Run) -> float:
    """Points that the host alone gains by the longest of its runs."""
    losses = run["frontier"]["losses"]
    return 100 * (1 - min(losses) / losses[0])
