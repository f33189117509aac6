"""What came out, for readers with a minute: two tables without intervals."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.growth.tables import loss_of, tables_of

TASKS = {
    "digits": "handwritten digits, perceptron",
    "mnist1d": "MNIST-1D, perceptron",
    "mnist1d-cnn": "MNIST-1D, residual CNN",
    "text-mlp": "text, perceptron",
    "text-gpt": "text, transformer",
}


def at_a_glance(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of the grown run and its two main controls at equal training FLOPs, and what trying took.

    Args:
        tasks: main table by task.
    """
    lines = [
        "| task | parameters, before and after | grew on | host trained on | network of the grown size | grown | "
        "spent on trying |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, table in tasks.items():
        grown, host, static = (table[row] for row in ("grown", "host_on", "static"))
        accuracies = " | ".join(f"{row['accuracy'][0]:.1f} %" for row in (host, static, grown))
        lines.append(
            f"| {TASKS.get(task, task)} | {host['parameters'][0]:,.0f}, {grown['parameters'][0]:,.0f} | "
            f"{grown['kept']} of {grown['seeds']} seeds | {accuracies} | "
            f"{100 * grown['share_of_arms_and_judging'][0]:.0f} % |"
        )
    return "\n".join(lines)


def in_nats(results: Mapping[str, Any], grown: str, controls: Mapping[str, str]) -> str:
    """Test loss and accuracy of the grown run and its controls on texts, and what trying took; means over the seeds
    that all of them have.

    Args:
        results: as :func:`benchmarks.growth.results.collected` gives them.
        grown: the row that grows.
        controls: what to call the rows beside it.

    Returns:
        A table; empty if no case has the row that grows.
    """
    lines = [
        "| case, nats per byte | parameters, before and after | grew on | "
        + " | ".join((*controls.values(), "grown"))
        + " | spent on trying |",
        "|" + "---|" * (5 + len(controls)),
    ]
    for case in results["settings"]:
        rows: dict[str, Any] = {}
        for table in tables_of(results, case):
            rows |= table if grown in table else {}
        if grown not in rows:
            continue
        own = rows[grown]
        by_seed = {name: rows[name]["by_seed"] for name in (*controls, grown) if name in rows}
        seeds = set.intersection(*map(set, by_seed.values()))
        shown = (
            _loss_and_accuracy([by_seed[name][seed] for seed in sorted(seeds)]) if name in by_seed else "not computed"
            for name in (*controls, grown)
        )
        lines.append(
            f"| {case} | {_size_before(rows)}, {own['parameters'][0]:,.0f} | {own['kept']} of {own['seeds']} seeds | "
            f"{' | '.join(shown)} | {100 * own['share_of_arms_and_judging'][0]:.0f} % |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def _loss_and_accuracy(cells: Sequence[Mapping[str, Any]]) -> str:
    return f"{mean(map(loss_of, cells)):.3f}, {100 * mean(cell['test_metric'] for cell in cells):.1f} %"


def _size_before(rows: Mapping[str, Any]) -> str:
    """Parameters of the host, if it was trained on."""
    host = next((row for name, row in rows.items() if name.endswith("host_on")), None)
    return "?" if host is None else f"{host['parameters'][0]:,.0f}"


def in_short(results: Mapping[str, Any], trials: Mapping[str, Any]) -> str:
    """A table of three rows: against the host trained on, against a network of the grown size, against the twin.

    A task counts as won where the claim of more accuracy holds after correction, as lost where the whole interval is
    below zero.
    """
    tasks: Mapping[str, Mapping[str, Any]] = results["tasks"]
    grown = {task: table["grown"] for task, table in tasks.items()}
    won, points = _won(results, "host_on"), mean(table["host_on"]["points_gained"][0] for table in tasks.values())
    seeds = {task: tasks[task]["host_on"]["seeds_won_on_accuracy"] for task in won}
    least, most = min(seeds.values()), grown[won[0]]["seeds"]
    against_host = (
        f"better on {len(won)} of {len(tasks)} tasks, on {least} of {most} seeds each; "
        f"{points:+.1f} points of accuracy on average"
    )
    won = _won(results, "static")
    lost = {task: table["static"]["points_gained"][0] for task, table in tasks.items() if _is_below(table["static"])}
    level = len(tasks) - len(won) - len(lost)
    behind = " and ".join(f"{-gain:.1f}" for gain in lost.values())
    net = trials["summary"][0]["rate"]
    rows = {
        "compared with": "growth ends",
        "---": "---",
        "the host trained on, equal FLOPs": against_host,
        "a tuned network that had the grown size from the start": (
            f"better on {len(won)} tasks, level on {level}, {behind} points behind on {len(lost)}"
        ),
        "the same run without it, where something was kept": f"better in {net['hits']} of {net['count']} runs",
    }
    return "\n".join(f"| {against} | {found} |" for against, found in rows.items())


def cost(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Smallest and largest share of the training FLOPs that trying takes, over tasks."""
    shares: Sequence[float] = [100 * table["grown"]["share_of_arms_and_judging"][0] for table in tasks.values()]
    return f"{min(shares):.0f} to {max(shares):.0f} %"


def _won(results: Mapping[str, Any], control: str) -> list[str]:
    return [
        claim["task"]
        for claim in results["claims"]["headline"]
        if (claim["against"], claim["measure"], claim["margin"]) == (control, "accuracy", None) and claim["holds"]
    ]


def _is_below(row: Mapping[str, Any]) -> bool:
    return bool(row["points_gained"][2] < 0)
