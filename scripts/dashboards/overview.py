"""*Overview*: which runs there are, how far they are, which of them grow."""

from scripts.dashboards.panel import Board, Panel

_NOW = (
    Panel("Runs", "Runs that the exporter knows, by how they are.", "none", {"esper_runs": "{{status}}"}, "number", 8),
    Panel(
        "Alerts",
        "Alerts that fire now; the runbook says what to do about each.",
        "none",
        {'sum(ALERTS{alertname=~"Esper.*",alertstate="firing"}) or vector(0)': "firing"},
        "number",
        4,
    ),
    Panel(
        "Under way",
        "Runs with a round or a live trial under way.",
        "none",
        {"sum(esper_trying{$})": "trying"},
        "number",
        4,
    ),
    Panel(
        "Adaptations that lasted",
        "Share of all lifecycles that became fossils.",
        "percentunit",
        {
            '(sum(esper_lifecycles_total{$,outcome="FOSSILIZED"}) or vector(0)) '
            "/ sum(esper_lifecycles_total{$})": "fossils"
        },
        "number",
        4,
    ),
    Panel(
        "Grown",
        "Parameters that have grown, of all runs.",
        "short",
        {"sum(esper_grown_parameters{$})": "parameters"},
        "number",
        4,
    ),
    Panel(
        "Every run",
        "One row a run. Up is 1 while it lives; finished is 1 once it has ended well; neither means that it is dead.",
        "short",
        {
            "max by (run) (esper_run_up{$})": "up",
            "max by (run) (esper_run_finished{$})": "finished",
            "max by (run) (esper_step{$})": "step",
            "max by (run) (esper_planned_steps{$})": "planned",
            "max by (run) (esper_epoch{$})": "epoch",
            "max by (run) (esper_select_loss{$})": "held-out loss",
            "max by (run) (esper_host_parameters{$})": "host parameters",
            "max by (run) (esper_grown_parameters{$})": "grown parameters",
            "max by (run, host) (esper_run_info{$})": "host",
        },
        "table",
        24,
    ),
)

_LEARNING = (
    Panel(
        "Progress",
        "Share of the planned steps that is done.",
        "percentunit",
        {"esper_step{$} / esper_planned_steps{$}": "{{run}}"},
    ),
    Panel(
        "Held-out loss",
        "At the last boundary; a gap is a loss that is not finite.",
        "none",
        {"esper_select_loss{$}": "{{run}}"},
    ),
    Panel(
        "Training loss",
        "Mean of the last epoch; a gap is a loss that is not finite.",
        "none",
        {"esper_train_loss{$}": "{{run}}"},
    ),
    Panel(
        "Metric of the task",
        "At the last boundary, as the task measures it.",
        "none",
        {"esper_select_metric{$}": "{{run}}"},
    ),
    Panel(
        "Learning rate", "Of the optimizer's group that holds the grafts.", "sci", {"esper_learning_rate{$}": "{{run}}"}
    ),
    Panel(
        "Silence",
        "Time since a run told anything. Heartbeats come every 5 seconds while it lives.",
        "s",
        {"time() - esper_run_last_seen_timestamp_seconds{$}": "{{run}}"},
    ),
)

_GROWING = (
    Panel("Seeds by state", "Of all chosen runs.", "none", {"sum by (state) (esper_seeds{$})": "{{state}}"}, "stacked"),
    Panel("Grown parameters", "Fossils and live grafts.", "short", {"esper_grown_parameters{$}": "{{run}}"}),
    Panel(
        "Fossils by run",
        "Lifecycles that ended well, since the process began.",
        "none",
        {
            'sum by (run) (esper_lifecycles_total{$,outcome="FOSSILIZED"}) '
            "or 0 * max by (run) (esper_run_up{$})": "{{run}}"
        },
    ),
)

_MACHINE = (
    Panel(
        "Steps per second",
        "Arms and boundaries in between counted as time.",
        "ops",
        {"esper_steps_per_second{$}": "{{run}}"},
    ),
    Panel("Memory of the host", "That the process of a run holds.", "bytes", {"esper_memory_bytes{$}": "{{run}}"}),
    Panel(
        "Age of the last checkpoint",
        "What would be lost if the run died now.",
        "s",
        {"time() - esper_checkpoint_timestamp_seconds{$}": "{{run}}"},
    ),
)

BOARD = Board(
    "overview",
    "overview",
    "Which runs there are, how far they are, and which of them grow.",
    {"Now": _NOW, "Learning": _LEARNING, "Growing": _GROWING, "Machine": _MACHINE},
)
