"""*Errors*: what went wrong, in the runs and around them."""

from scripts.dashboards.panel import Board, Panel

_TROUBLE = 'event=~"fault|refused|emergency"'

_RUNS = (
    Panel(
        "Losses that were not finite",
        "Boundaries at which one was not, so far.",
        "none",
        {"esper_losses_not_finite_total{$}": "{{run}}"},
    ),
    Panel(
        "Rollbacks",
        "Times that a run went back to an earlier state, so far.",
        "none",
        {"esper_rollbacks_total{$}": "{{run}}"},
    ),
    Panel(
        "Emergencies",
        "By what was done about them, so far.",
        "none",
        {"sum by (run, response) (esper_emergencies_total{$})": "{{run}}: {{response}}"},
    ),
    Panel(
        "Quarantines",
        "Seeds that were rolled back and must rest, by layer, so far.",
        "none",
        {"sum by (run, layer) (esper_quarantines_total{$})": "{{run}}: {{layer}}"},
    ),
    Panel(
        "Faults",
        "Values that were not finite and were kept from the host, by layer, so far.",
        "none",
        {"sum by (run, layer) (esper_faults_total{$})": "{{run}}: {{layer}}"},
    ),
    Panel(
        "Vetoes",
        "Commands that the shield refused, by its rule, so far.",
        "none",
        {"sum by (rule) (esper_vetoes_total{$})": "{{rule}}"},
        "stacked",
    ),
    Panel("Refusals", "Commands that were refused otherwise, so far.", "none", {"esper_refusals_total{$}": "{{run}}"}),
    Panel(
        "Lines of trouble",
        "What runs told of trouble in the last 15 minutes; the alert on the rate of errors looks at the same.",
        "none",
        {f"sum by (run, event) (increase(esper_events_total{{$,{_TROUBLE}}}[15m]))": "{{run}}: {{event}}"},
    ),
    Panel(
        "Silence",
        "Time since a run told anything.",
        "s",
        {"time() - esper_run_last_seen_timestamp_seconds{$}": "{{run}}"},
    ),
)

_BUS = (
    Panel("The exporter's bus", "1 while it answers.", "none", {"esper_exporter_bus_up": "{{instance}}"}),
    Panel(
        "Lines that wait for the bus",
        "More than a few mean that it takes none, or is slow.",
        "none",
        {"esper_bus_queue{$}": "{{run}}"},
    ),
    Panel("Lines that were dropped", "Telemetry only, so far.", "none", {"esper_bus_dropped_total{$}": "{{run}}"}),
    Panel(
        "Failures of the bus",
        "Times that it did not take what it was offered, so far.",
        "none",
        {"esper_bus_failures_total{$}": "{{run}}"},
    ),
    Panel("Messages that no bus will take", "So far.", "none", {"esper_bus_unsendable_total{$}": "{{run}}"}),
    Panel(
        "Messages published",
        "By all chosen runs, a second.",
        "mps",
        {"sum(rate(esper_bus_published_total{$}[$__rate_interval]))": "messages"},
    ),
    Panel(
        "Dead letters by topic", "That a topic holds, at most 1000.", "none", {"esper_topic_dead_letters": "{{topic}}"}
    ),
    Panel("Commands that could not be read", "By run, so far.", "none", {"esper_bus_dead_letters_total{$}": "{{run}}"}),
    Panel("Messages by topic", "That a topic holds.", "none", {"esper_topic_messages": "{{topic}}"}),
    Panel(
        "What the exporter could not read",
        "Messages and lines, so far.",
        "none",
        {"esper_exporter_unreadable_total": "{{instance}}"},
    ),
    Panel(
        "Commands over the bus",
        "By what became of them, so far.",
        "none",
        {"sum by (run, result) (esper_commands_total{$})": "{{run}}: {{result}}"},
    ),
)

_CONTROLLER = (
    Panel("Decisions of the controller", "That came in time, so far.", "none", {"esper_decisions_total{$}": "{{run}}"}),
    Panel(
        "Decisions that were missed",
        "The run went on without, so far.",
        "none",
        {"esper_decisions_missed_total{$}": "{{run}}"},
    ),
    Panel(
        "Silence of the controller",
        "Time since it last decided for a run; runs ask at their boundaries only.",
        "s",
        {"time() - (esper_controller_last_seen_timestamp_seconds{$} > 0)": "{{run}}"},
    ),
)

BOARD = Board(
    "errors",
    "errors",
    "What went wrong, in the runs and around them.",
    {"Runs": _RUNS, "Bus": _BUS, "Controller elsewhere": _CONTROLLER},
)
