"""A sweep in words and tables, for terminal and page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.evaluation.sweep.plan import PROBLEM, WORST, Trial
from esper.evaluation.sweep.record import Outcome, Sweep
from esper.evaluation.sweep.standing import SEED, Configuration, Standing, standings
from esper.observability.cited import SPECS

SHOWN = 10
"""Rows of the table in a terminal; the files hold all."""


FURTHER = ("seeds", "test loss", "grown")
"""What that table tells beside the metric."""


def title(name: str) -> str:
    """A metric as people call it."""
    return {
        "held_out_loss": "held-out loss",
        "held_out_metric": "held-out metric",
        "train_flops": "training FLOPs",
    }.get(name, name)


def number(value: float | None, name: str = "held_out_loss") -> str:
    """A measure as it is read."""
    if value is None:
        return "-"
    spec = {"train_flops": "flops", "seconds": "seconds", "held_out_loss": "loss", "test_loss": "loss"}.get(name)
    return SPECS[spec](value) if spec else f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def told(parameters: Mapping[str, Any]) -> str:
    """Parameters in a line."""
    return ", ".join(f"{name} {setting(value)}" for name, value in parameters.items()) or "as in the file"


def setting(value: Any) -> str:
    """A value of an option as the file holds it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {setting(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return "-".join(map(setting, value)) or "none"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def beginning(sweep: Sweep, waiting: list[Trial], workers: int, directory: Path) -> str:
    """The first line."""
    count = len(sweep.plan.trials)
    over = f", {count - len(waiting)} of them over already" if len(waiting) < count else ""
    return f"{_count(count, 'trial')}{over}; {_count(workers, 'worker')}; {directory}"


def progress(sweep: Sweep, trial: Trial, count: int) -> str:
    """A line for a trial that is over."""
    outcome = sweep.outcomes[trial.number]
    said = [f"[{len(sweep.outcomes):>{len(str(count))}}/{count}] trial {trial.name} {outcome.state}"]
    if outcome.state == "failed":
        said.append(f"  {outcome.reason}")
    else:
        metric = sweep.plan.metric
        said.append(f"  {title(metric)} {number(outcome.measures.get(metric), metric)}")
    return "".join([*said, f"  ({told(trial.parameters)})" if trial.parameters else ""])


def headline(sweep: Sweep) -> str:
    """What came of it, in one sentence."""
    found = [_best(sweep, one) for one in standings(sweep) if one.configurations]
    return " ".join(found) or "No trial trained to its end."


def _best(sweep: Sweep, standing: Standing) -> str:
    best, metric = standing.configurations[0], sweep.plan.metric
    where = f"On {standing.problem}, best is " if standing.problem else "Best is "
    which = (
        f"{where}{told(best.parameters)}"
        if best.parameters
        else f"{standing.problem or 'All trials but for the seed are alike'}"
    )
    reached = f"{title(metric)} {_mean(best, metric)}"
    over = f", on average over {_count(len(best.finished), 'seed')}" if len(best.trials) > 1 else ""
    alike = [told(one.parameters) for one in standing.configurations[1:] if one.values == best.values]
    ties = f" As good: {'; '.join(alike)}." if alike else ""
    return f"{which}: {reached}{over}.{ties}"


def story(sweep: Sweep) -> list[str]:
    """What has to be known to read the rest."""
    plan = sweep.plan
    states = {state: len(sweep.of(state)) for state in ("finished", "stopped", "failed")}
    said = [f"Of {_count(len(plan.trials), 'trial')} {_are(states['finished'])} finished"]
    said += [f"{_are(states['stopped'])} stopped early"] if states["stopped"] else []
    said += [f"{states['failed']} failed"] if states["failed"] else []
    said += [f"{_are(len(sweep.waiting))} not over yet"] if sweep.waiting else []
    flops, seconds = (sum(_known(sweep, name)) for name in ("train_flops", "seconds"))
    cost = f"They took {number(flops, 'train_flops')} training FLOPs and {number(seconds, 'seconds')} of training."
    paragraphs = [f"{_listed(said)}. {cost}", _rule(sweep)]
    if states["stopped"]:
        paragraphs.append("Means are over trials that trained to their end: those that were stopped are left out.")
    return paragraphs


def _rule(sweep: Sweep) -> str:
    metric, mode = title(sweep.plan.metric), sweep.plan.mode
    way = "the least" if mode == "min" else "the greatest"
    seeds = sweep.plan.values(SEED)
    over = "A setting counts by its mean over all seeds. " if len(seeds) > 1 else ""
    lone = "There is one seed only: differences may be chance. " if len(seeds) == 1 else ""
    return (
        f"{over}Best is {way} {metric}. {lone}No choice was made by the test samples; a best of many looks better on "
        f"the held-out samples than it is. Seeds: {', '.join(map(str, seeds))}."
    )


def columns(sweep: Sweep) -> list[str]:
    """Headings of :func:`cells`."""
    names = [name for name in sweep.plan.trials[0].parameters if name not in (SEED, *PROBLEM)]
    metric = title(sweep.plan.metric)
    return ["rank", *names, "seeds", metric, "test loss", "parameters", "grown", "training FLOPs"]


def cells(sweep: Sweep, rank: int, one: Configuration) -> list[str]:
    """A configuration as a row."""
    metric = sweep.plan.metric

    def mean(name: str) -> str:
        found = [sweep.outcomes[trial.number].measures[name] for trial in one.finished]
        known = [value for value in found if value is not None]
        return number(sum(known) / len(known), name) if known else "-"

    return [
        str(rank),
        *(setting(value) for value in one.parameters.values()),
        f"{len(one.finished)} of {len(one.trials)}",
        _over_seeds(one, metric),
        *(mean(name) for name in ("test_loss", "parameters", "grown", "train_flops")),
    ]


def _over_seeds(one: Configuration, metric: str) -> str:
    spread = "" if one.spread is None or not _is_finite(one) else f" ± {one.spread:.2g}"
    return f"{_mean(one, metric)}{spread}"


def _mean(one: Configuration, metric: str) -> str:
    return number(one.mean, metric) if _is_finite(one) else "not finite"


def _is_finite(one: Configuration) -> bool:
    return all(abs(value) < WORST for value in one.values)


def show(sweep: Sweep) -> None:
    """Print the best configurations, what failed, and the last words.

    Raises:
        ConfigError: if rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise ConfigError("rich is not installed: pip install 'esper-morphogenetic[run]'.") from error
    console = Console(highlight=False, markup=False)
    for standing in standings(sweep):
        if not standing.configurations:
            continue
        more = len(standing.configurations) - SHOWN
        table = Table(
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title=standing.problem or None,
            caption=f"and {more} more" if more > 0 else None,
            title_justify="left",
            caption_justify="left",
        )
        shown = standing.configurations[:SHOWN]
        count = len(shown[0].parameters)
        rows = [cells(sweep, rank, one) for rank, one in enumerate(shown, 1)]
        headings = columns(sweep)
        table.add_column("rank", justify="right")
        table.add_column("settings")  # one column that may wrap: there may be many
        further = [at for at in range(1 + count, len(headings)) if headings[at] in (*FURTHER, title(sweep.plan.metric))]
        for at in further:
            table.add_column(headings[at], justify="right", no_wrap=True)
        for row, one in zip(rows, shown, strict=True):
            style = "bold" if one is shown[0] else None
            table.add_row(row[0], told(one.parameters), *(row[at] for at in further), style=style)
        console.print()
        console.print(table)
    for reason, count in _reasons(sweep).items():
        console.print(f"\n{_count(count, 'trial')} failed: {reason}", soft_wrap=True)
    console.print()
    for paragraph in (*story(sweep), headline(sweep)):
        console.print(paragraph)


def _reasons(sweep: Sweep) -> dict[str, int]:
    """How many trials failed, by reason."""
    found: dict[str, int] = {}
    for trial in sweep.of("failed"):
        reason = sweep.outcomes[trial.number].reason or ""
        found[reason] = found.get(reason, 0) + 1
    return found


def _known(sweep: Sweep, name: str) -> list[float]:
    outcomes: list[Outcome] = list(sweep.outcomes.values())
    return [value for one in outcomes if (value := one.measures.get(name)) is not None]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return f"{count:,} {'is' if count == 1 else 'are'}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
