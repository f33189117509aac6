"""*Rollout progress*: for how many runs a feature flag is on, and how those compare with the others."""

from scripts.dashboards.panel import Board, Panel

_FLAG = 'esper_flag{$,flag="$flag"}'


def _both(told: str, fold: str = "avg") -> dict[str, str]:
    """Runs with the flag, and those without."""
    return {f"{fold}({told} and on (run) {_FLAG} == {on})": side for on, side in ((1, "on"), (0, "off"))}


def _mean_step(on: int) -> str:
    sums, counts = (
        f"sum(rate(esper_step_seconds_{part}{{$}}[$__rate_interval]) and on (run) {_FLAG} == {on})"
        for part in ("sum", "count")
    )
    return f"{sums} / {counts}"


_PROGRESS = (
    Panel(
        "Runs by flag",
        "Runs for which a flag is on.",
        "none",
        {"sum by (flag) (esper_flag{$})": "{{flag}} on", "sum by (flag) (1 - esper_flag{$})": "{{flag}} off"},
        "number",
        24,
    ),
    Panel(
        "Share of runs with a flag",
        "As it was decided when they began.",
        "percentunit",
        {"avg by (flag) (esper_flag{$})": "{{flag}}"},
    ),
    Panel("Runs that live", "By whether the flag is on.", "none", _both("esper_run_up{$}", "sum")),
    Panel(
        "Flags that were not decided as their store says",
        "Their rule failed, or the store could not be used and its last good copy, or off, counts.",
        "none",
        {"sum by (run) (esper_flags_in_doubt{$})": "{{run}}"},
    ),
)

_COMPARED = (
    Panel(
        "Held-out loss",
        "Mean over the runs of a side. Runs of different tasks do not compare: choose runs.",
        "none",
        _both("esper_select_loss{$}"),
    ),
    Panel("Metric of the task", "Mean over the runs of a side.", "none", _both("esper_select_metric{$}")),
    Panel(
        "Adaptations that lasted",
        "Mean over runs of the share of lifecycles that became fossils.",
        "percentunit",
        _both("esper_adaptation_success_ratio{$}"),
    ),
    Panel("Time of a step", "Mean over all steps of a side.", "s", {_mean_step(1): "on", _mean_step(0): "off"}),
    Panel("Memory of the host", "Mean over the runs of a side.", "bytes", _both("esper_memory_bytes{$}")),
    Panel("Rollbacks", "Per run.", "none", _both("esper_rollbacks_total{$}")),
    Panel("Losses that were not finite", "Per run.", "none", _both("esper_losses_not_finite_total{$}")),
    Panel("Grown parameters", "Mean over the runs of a side.", "short", _both("esper_grown_parameters{$}")),
    Panel(
        "Progress",
        "Mean share of the planned steps that is done.",
        "percentunit",
        _both("esper_step{$} / esper_planned_steps{$}"),
    ),
)

BOARD = Board(
    "rollout-progress",
    "rollout progress",
    "For how many runs a feature flag is on, and how both sides compare.",
    {"Progress": _PROGRESS, "On against off": _COMPARED},
    {"flag": "label_values(esper_flag, flag)"},
)
