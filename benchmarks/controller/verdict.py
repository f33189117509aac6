"""Whether a controller passes: what is asked, what was found, and what a controller that is no better would get.

Such a controller differs from the heuristic by chance alone, so that each of its differences is as likely to have the
other sign. What it would get is found by flipping the signs of the differences that were seen.
"""

# X flips, F families, S seeds

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.controller.running import HEURISTIC
from benchmarks.controller.scores import LEVEL, WORSE, Pairs
from esper.blueprints.controls import Placebo

P_BETTER = 0.01
COST = 0.5
PLACEBO_KEPT = 0.02
FLIPS = 10_000

Point = dict[str, Any]


def judged(
    compared: Pairs, examinee: str, families: Mapping[str, Any], everything: Mapping[str, Any], wide: Sequence[str]
) -> dict[str, Any]:
    """Whether an examinee passes each point of the exam of growth.

    Args:
        compared: runs of both.
        examinee: its name.
        families: as :func:`~benchmarks.controller.scores.by_family` gives them.
        everything: as :func:`~benchmarks.controller.scores.overall` does.
        wide: families whose hosts have room to spare.
    """
    points = [
        _better(everything),
        _no_worse(compared, examinee, families),
        _cheap(everything),
        _refused(compared, examinee, [name for name in wide if name in families]),
    ]
    return {"points": points, "passes": all(one["passes"] for one in points)}


def judged_by_placebos(compared: Pairs, examinee: str) -> dict[str, Any]:
    """Whether an examinee passes the exam in which only placebos are on offer."""
    tried, kept = (sum(run[name] for run in compared.of(examinee)) for name in ("tried", "kept"))
    theirs = [sum(run[name] for run in compared.of(HEURISTIC)) for name in ("kept", "tried")]
    at_most = float(stats.binomtest(kept, tried).proportion_ci(0.95, "exact").high) if tried else 0.0
    point = {
        "asked": f"at most {PLACEBO_KEPT:.0%} of the placebos are kept",
        "found": f"{kept} of {tried}" + (f", at most {at_most:.1%} with 95 % confidence" if tried else ""),
        "equal": f"the heuristic kept {theirs[0]} of {theirs[1]}",
        "share": kept / tried if tried else 0.0,
        "passes": kept <= PLACEBO_KEPT * tried,
    }
    return {"points": [point], "passes": point["passes"]}


def is_of_placebos(growth: Mapping[str, Any]) -> bool:
    """Whether nothing else may grow."""
    return list(growth.get("blueprints", ())) == [Placebo.id]


def _better(everything: Mapping[str, Any]) -> Point:
    p, ahead = everything["p_families"], everything["difference"]
    return {
        "asked": f"better overall, p < {P_BETTER:g} over families",
        "found": f"{ahead:+.2f} points, p {p:.2g} over {everything['families']} families, {everything['p_pairs']:.2g} "
        f"over {everything['pairs']} pairs",
        "equal": f"passes in {P_BETTER:.0%} of exams",
        "passes": ahead > 0 and p < P_BETTER,
    }


def _no_worse(compared: Pairs, examinee: str, families: Mapping[str, Any]) -> Point:
    worse = {name: one for name, one in families.items() if one["difference"] < -WORSE}
    sure = [name for name, one in worse.items() if one["p_worse_holm"] <= LEVEL]
    told = [
        f"{name} {one['difference']:+.2f}{' (beyond chance)' if name in sure else ''}" for name, one in worse.items()
    ]
    passes, beyond = _equal_no_worse(compared, examinee)
    return {
        "asked": f"no family worse by more than {WORSE:g} points",
        "found": ", ".join(told) or "none is",
        "equal": f"passes in {passes:.0%} of exams; has {beyond:.1f} such families on average",
        "worse": list(worse),
        "beyond_chance": sure,
        "passes_beyond_chance": not sure,
        "equal_passes": passes,
        "passes": not worse,
    }


def _equal_no_worse(compared: Pairs, examinee: str) -> tuple[float, float]:
    """How often flipped differences leave no family behind by more than the margin; and the mean number that are."""
    rng, worse_X = np.random.default_rng(0), np.zeros(FLIPS)
    for values in compared.differences(examinee).values():
        sign_XS = rng.choice((-1.0, 1.0), size=(FLIPS, len(values)))
        worse_X += (sign_XS * values).mean(axis=1) < -WORSE
    return float((worse_X == 0).mean()), float(worse_X.mean())


def _cheap(everything: Mapping[str, Any]) -> Point:
    mine, theirs = everything["examinee"]["cost"], everything[HEURISTIC]["cost"]
    return {
        "asked": f"trying costs at most {COST:g} of what the heuristic's does",
        "found": f"{mine:.1%} of the run beside {theirs:.1%}" + (f": {mine / theirs:.2f}" if theirs else ""),
        "equal": "1",
        "passes": mine <= COST * theirs,
    }


def _refused(compared: Pairs, examinee: str, wide: Sequence[str]) -> Point:
    runs = [compared.of(policy, wide) for policy in (examinee, HEURISTIC)]
    mine, theirs = (sum(run["kept"] == 0 for run in ours) for ours in runs)
    untried, theirs_untried = (sum(run["tried"] == 0 for run in ours) for ours in runs)
    return {
        "asked": "wide hosts keep nothing at least as often",
        "found": f"{mine} of {len(runs[0])}, nothing tried in {untried}",
        "equal": f"the heuristic: {theirs} of {len(runs[1])}, nothing tried in {theirs_untried}",
        "passes": mine >= theirs,
    }
