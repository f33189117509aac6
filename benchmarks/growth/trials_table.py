"""What the trials show: rates with intervals against the targets, and what happened by task and width."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.growth.trials_list import CONTROLS, Trial
from benchmarks.growth.trials_statistics import Rate, mean, rate

Result = Mapping[str, Any]
Pairs = Sequence[tuple[Trial, Result]]

ALLOWED_LOSS_OF_ACCURACY = 0.005
"""A run that grew may end with an accuracy that much below its twin's."""

LEAST_RUNS = 200
"""So many runs that fossilised make the net success a claim."""

Row = dict[str, Any]


def summary(results: Pairs, controls: Pairs) -> list[Row]:
    """One row per question: what was found, the target and whether it is met (None: no target, or nothing to judge)."""
    grew = [one for one in results if one[1]["kept"]]
    small, wide = ([one for one in results if one[0].is_wide is is_wide] for is_wide in (False, True))
    refused = [result for _, result in wide if not result["kept"]]
    everything = [result for _, result in (*results, *controls)]
    untouched = [result for _, result in results if not result["adopted"]]
    rows = [
        _rate_row(
            f"net success: of runs that fossilised, test loss below the twin's and accuracy at most 0.5 point below "
            f"(at least {LEAST_RUNS} such runs)",
            rate([is_net_success(result) for _, result in grew]),
            ">= 97 %, exact lower bound >= 95 %",
            lambda found: found.count >= LEAST_RUNS and found.share >= 0.97 and _at_least(found) >= 0.95,
        ),
        _rate_row(
            "ablation success: fossils without which test loss is higher",
            rate([_useful(result) for _, result in grew], [len(result["fossils"]) for _, result in grew]),
        ),
        _rate_row(
            "yield: small hosts that fossilised",
            rate([bool(result["kept"]) for _, result in small]),
            ">= 50 %",
            lambda found: found.share >= 0.5,
        ),
        _rate_row(
            "wide hosts that refused: no fossil at the end",
            rate([not result["kept"] for _, result in wide]),
            ">= 80 %",
            lambda found: found.share >= 0.8,
        ),
        _rate_row(
            "wide hosts that refused at once: nothing adopted", rate([not result["adopted"] for _, result in wide])
        ),
        _mean_row(
            "percent of the training FLOPs that refusing cost wide hosts",
            [100 * result["grown"]["probe_flops"] / result["grown"]["train_flops"] for result in refused],
            "<= 3",
            lambda cost: cost <= 3,
        ),
        _mean_row(
            "points that refusing cost wide hosts, at equal steps",
            [points(result["twin"], result["grown"]) for result in refused],
            "<= 0.2",
            lambda cost: cost <= 0.2,
        ),
        _mean_row(
            "points that refusing cost wide hosts, at equal FLOPs",
            [points(result["host_on"], result["grown"]) for result in refused],
            "<= 0.2",
            lambda cost: cost <= 0.2,
        ),
        *(
            _rate_row(
                f"{name}: trials that kept it",
                rate([bool(result["kept"]) for trial, result in controls if trial.blueprint == name]),
                "<= 2 %",
                lambda found: found.share <= 0.02,
            )
            for name in CONTROLS
        ),
        _rate_row(
            "lifecycles that reached an outcome",
            rate([result["ended"] for result in everything], [result["begun"] for result in everything]),
            ">= 90 %",
            lambda found: found.share >= 0.9,
        ),
        _rate_row(
            "runs that adopted nothing and end with their twin's bytes", rate([one["is_twin"] for one in untouched])
        ),
        _rate_row("all runs that end worse than their twin in test loss", rate([is_worse(one) for _, one in results])),
    ]
    return rows


def by_task(results: Pairs) -> list[Row]:
    """What happened, by task and width."""
    rows = []
    for task, width in sorted({(trial.task, trial.width) for trial, _ in results}):
        found = [result for trial, result in results if (trial.task, trial.width) == (task, width)]
        grew = [result for result in found if result["kept"]]
        rows.append(
            {
                "task": task,
                "width": width,
                "runs": len(found),
                "adopted": sum(bool(result["adopted"]) for result in found),
                "fossilised": len(grew),
                "net_success": sum(is_net_success(result) for result in grew),
                "worse_than_twin": sum(is_worse(result) for result in found),
                "points_gained": mean([points(result["grown"], result["twin"]) for result in found]),
                "points_gained_where_fossilised": mean([points(one["grown"], one["twin"]) for one in grew]),
                "flops_relative": mean([one["grown"]["train_flops"] / one["twin"]["train_flops"] for one in found]),
            }
        )
    return rows


def markdown(rows: Iterable[Row], tasks: Iterable[Row]) -> str:
    """The tables as the documents show them.

    Args:
        rows: of :func:`summary`.
        tasks: of :func:`by_task`.
    """
    lines = [
        "| question | found | 95 % interval, by runs | exact one-sided 95 % bounds | target | |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "| task | width | runs | adopted | fossilised | net success | worse than twin | points gained | "
        "where fossilised | FLOPs of the twin's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in tasks:
        gained, where_grown = (_shown(row[name]) for name in ("points_gained", "points_gained_where_fossilised"))
        lines.append(
            f"| {row['task']} | {row['width']} | {row['runs']} | {row['adopted']} | {row['fossilised']} | "
            f"{row['net_success']} | {row['worse_than_twin']} | {gained} | {where_grown} | "
            f"{row['flops_relative'][0]:.2f} |"
        )
    lines += ["", "Grown run and twin take equally many steps; the last column tells what arms and grafts cost beyond."]
    return "\n".join(lines)


def is_net_success(result: Result) -> bool:
    """Whether a run ended at a lower test loss than its twin, with an accuracy at most half a point below."""
    grown, twin = result["grown"], result["twin"]
    is_right = grown["test_accuracy"] >= twin["test_accuracy"] - ALLOWED_LOSS_OF_ACCURACY
    return _loss(grown) < _loss(twin) and is_right


def is_worse(result: Result) -> bool:
    """Whether a run ended at a higher test loss than its twin."""
    return _loss(result["grown"]) > _loss(result["twin"])


def points(one: Result, other: Result) -> float:
    """By how many percentage points of test accuracy ``one`` is better than ``other``."""
    return 100 * float(one["test_accuracy"] - other["test_accuracy"])


def _loss(measured: Result) -> float:
    """Test loss; one that is not finite is stored as null."""
    return math.inf if measured["test_loss"] is None else float(measured["test_loss"])


def _useful(result: Result) -> int:
    return sum(fossil["loss_without"] > _loss(result["grown"]) for fossil in result["fossils"])


def _at_least(found: Rate) -> float:
    return 0.0 if found.at_least is None else found.at_least


def _rate_row(
    question: str, found: Rate | None, target: str | None = None, meets: Callable[[Rate], bool] | None = None
) -> Row:
    is_met = None if found is None or meets is None else meets(found)
    return {"question": question, "rate": found and found.to_dict(), "target": target, "is_met": is_met}


def _mean_row(question: str, values: Sequence[float], target: str, meets: Callable[[float], bool]) -> Row:
    found = mean(values)
    return {"question": question, "mean": found, "target": target, "is_met": None if found is None else meets(found[0])}


def _is_answered(row: Row) -> bool:
    return row.get("rate") is not None or row.get("mean") is not None


def _line(row: Row) -> str:
    verdict = {True: "met", False: "missed", None: ""}[row["is_met"]]
    if not _is_answered(row):
        return f"| {row['question']} | nothing to judge | | | {row['target'] or ''} | |"
    if "mean" in row:
        value, low, high = row["mean"]
        found, interval, exact = f"{value:+.2f}", f"{low:+.2f} to {high:+.2f}", ""
    else:
        one = row["rate"]
        found = f"{one['hits']:,} of {one['count']:,}: {100 * one['share']:.1f} %"
        interval = f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %"
        exact = ""
        if one["at_least"] is not None:
            exact = f"at least {100 * one['at_least']:.1f} %, at most {100 * one['at_most']:.1f} %"
    return f"| {row['question']} | {found} | {interval} | {exact} | {row['target'] or ''} | {verdict} |"


def _shown(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"
