"""A sweep as one HTML file."""

import math
import statistics
from pathlib import Path
from typing import Any

from markupsafe import Markup

from esper.evaluation.sweep.plan import WORST, Trial
from esper.evaluation.sweep.record import Outcome, Sweep
from esper.evaluation.sweep.standing import Effect, Standing, standings
from esper.evaluation.sweep.words import cells, columns, headline, number, setting, story, title
from esper.observability.report import REPORT, render
from esper.observability.sheets import Sheet, sheet

PAGE = "sweep.html"
_WIDTH, _HEIGHT, _EDGE = 1000.0, 240.0, 16.0
_PLACES = 8
"""So many different values have a place each; more of them lie on an axis."""

_LOG_FROM = 10.0
"""How many times its least the greatest value of a logarithmic axis is."""


def page(sweep: Sweep, directory: Path) -> str:
    """The page.

    Args:
        sweep: under way, or over.
        directory: of the sweep, where links to reports lead.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    found = standings(sweep)
    values = {
        "title": directory.name,
        "headline": headline(sweep),
        "story": story(sweep),
        "metric": title(sweep.plan.metric),
        "problems": [_problem(sweep, one) for one in found],
        "failed": _failed(sweep),
        "stopped": _stopped(sweep),
        "trials": _trials(sweep, directory),
        "settings": _settings(sweep),
    }
    return render("sweep.html.j2", values)


def _problem(sweep: Sweep, standing: Standing) -> dict[str, Any]:
    names = columns(sweep)
    rows = [cells(sweep, rank, one) for rank, one in enumerate(standing.configurations, 1)]
    best = [rank == 0 for rank in range(len(rows))]
    return {
        "name": standing.problem,
        "best": sheet([(name, True) for name in names], rows, best),
        "effects": [_effect(sweep, one) for one in standing.effects],
    }


def _effect(sweep: Sweep, effect: Effect) -> dict[str, Any]:
    """The picture of a parameter and, where its values are few, their table."""
    metric, sign = sweep.plan.metric, 1 if sweep.plan.mode == "min" else -1
    groups = [(one, [(t, v) for t, v in points if abs(v) < WORST]) for one, points in effect.by_value]
    heights = [value for _, points in groups for _, value in points] or [0.0]
    low, high = min(heights), max(heights)
    has_places = len(groups) <= _PLACES
    across = _places(len(groups)) if has_places else _axis([float(one) for one, _ in groups])

    def height(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(_HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE), 2)

    dots = [
        (x, height(value), f"trial {trial.name}: {setting(one)}, {number(value, metric)}")
        for x, (one, points) in zip(across, groups, strict=True)
        for trial, value in points
    ]
    means = [
        (one, len(points), statistics.fmean(known), sign * min(sign * value for value in known))
        for one, points in effect.by_value
        if (known := [value for _, value in points if abs(value) < WORST])
    ]
    half = _WIDTH / len(groups) / 3
    return {
        "name": effect.name,
        "dots": dots,
        "means": [
            (round(x - half, 2), round(x + half, 2), height(statistics.fmean(value for _, value in points)))
            for x, (_, points) in zip(across, groups, strict=True)
            if points
        ]
        if has_places
        else [],
        "places": [setting(one) for one, _ in groups] if has_places else [],
        "ends": [setting(groups[0][0]), setting(groups[-1][0])],
        "is_log": not has_places and _is_log([float(one) for one, _ in groups]),
        "top": number(high, metric),
        "bottom": number(low, metric),
        "table": sheet(
            [(effect.name, False), ("trials", True), (f"mean {title(metric)}", True), ("best", True)],
            [
                [setting(one), str(count), number(mean, metric), number(best, metric)]
                for one, count, mean, best in means
            ],
        )
        if has_places
        else None,
    }


def _places(count: int) -> list[float]:
    return [round(_WIDTH * (index + 0.5) / count, 2) for index in range(count)]


def _axis(values: list[float]) -> list[float]:
    scaled = [math.log(value) for value in values] if _is_log(values) else values
    low, high = scaled[0], scaled[-1]
    return [round(_EDGE + (_WIDTH - 2 * _EDGE) * (value - low) / (high - low), 2) for value in scaled]


def _is_log(values: list[float]) -> bool:
    return values[0] > 0 and values[-1] / values[0] >= _LOG_FROM


def _failed(sweep: Sweep) -> Sheet | None:
    return _some(sweep, sweep.of("failed"), [("reason", False)], lambda one: [one.reason or ""])


def _stopped(sweep: Sweep) -> Sheet | None:
    metric = sweep.plan.metric
    return _some(
        sweep,
        sweep.of("stopped"),
        [("after epochs", True), (f"{title(metric)} then", True)],
        lambda one: [number(one.measures["epochs"], "epochs"), number(one.measures[metric], metric)],
    )


def _some(sweep: Sweep, trials: list[Trial], further: list[tuple[str, bool]], tell: Any) -> Sheet | None:
    names = list(sweep.plan.trials[0].parameters)
    rows = [
        [one.name, *(setting(one.parameters[name]) for name in names), *tell(sweep.outcomes[one.number])]
        for one in trials
    ]
    return sheet([("trial", False), *((name, True) for name in names), *further], rows)


def _trials(sweep: Sweep, directory: Path) -> Sheet | None:
    names = list(sweep.plan.trials[0].parameters)
    measures = [
        "held_out_loss",
        "held_out_metric",
        "test_loss",
        "parameters",
        "grown",
        "train_flops",
        "epochs",
        "seconds",
    ]
    rows = []
    for trial in sweep.plan.trials:
        outcome = sweep.outcomes.get(trial.number, Outcome("finished"))
        state = outcome.state if trial.number in sweep.outcomes else "waiting"
        path = Path("trials", trial.name, REPORT)
        name = Markup('<a href="{}">{}</a>').format(path, trial.name) if (directory / path).is_file() else trial.name
        known = [number(outcome.measures.get(one), one) for one in measures]
        rows.append([name, *(setting(trial.parameters[one]) for one in names), state, *known])
    headings = [("trial", False), *((name, True) for name in names), ("state", False)]
    return sheet([*headings, *((title(one).replace("_", " "), True) for one in measures)], rows)


def _settings(sweep: Sweep) -> list[tuple[str, str]]:
    plan = sweep.plan
    names = plan.trials[0].parameters
    asha = plan.asha
    early = "none" if asha is None else f"one of {asha.reduction_factor} goes on, from epoch {asha.grace_epochs}"
    tried = [(name, _shortened([setting(one) for one in plan.values(name)])) for name in names]
    fixed = [(name, setting(plan.values(name)[0])) for name in ("data", "host", "epochs") if name not in names]
    return [("ranked by", f"{title(plan.metric)}, {plan.mode}"), ("stopped early", early), *tried, *fixed]


def _shortened(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
