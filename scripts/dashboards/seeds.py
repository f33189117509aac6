"""*Seed health*: what seeds do, where, and what becomes of it."""

from scripts.dashboards.panel import Board, Panel

_NOW = (
    Panel(
        "Seeds by state",
        "Within an arm those of the arm.",
        "none",
        {"sum by (state) (esper_seeds{$})": "{{state}}"},
        "stacked",
    ),
    Panel(
        "Seeds awake, by layer",
        "Seeds that are not DORMANT.",
        "none",
        {"sum by (run, layer) (esper_awake_seeds{$})": "{{run}}: {{layer}}"},
    ),
    Panel(
        "Live grafts, by layer",
        "That take part in the forward pass.",
        "none",
        {"sum by (run, layer) (esper_live_grafts{$})": "{{run}}: {{layer}}"},
    ),
    Panel(
        "Alpha, by layer",
        "Mean blending factor of live grafts: 0 is not blended in, 1 is wholly.",
        "percentunit",
        {"esper_alpha{$}": "{{run}}: {{layer}}"},
    ),
    Panel("Round or live trial under way", "1 while there is one.", "none", {"esper_trying{$}": "{{run}}"}),
    Panel(
        "Age of the oldest lifecycle",
        "As a share of the planned steps. A graft that was kept stays until the learning rate has decayed.",
        "percentunit",
        {"esper_oldest_lifecycle_steps{$} / esper_planned_steps{$}": "{{run}}"},
    ),
    Panel(
        "Longest in one state",
        "Between GERMINATED and EVALUATING, as a share of the planned steps; a time-out ends it, at 0.5.",
        "percentunit",
        {"esper_state_age_steps{$} / esper_planned_steps{$}": "{{run}}"},
    ),
)

_VERDICTS = (
    Panel(
        "Transitions",
        "By the state they lead to, arms included, an hour.",
        "none",
        {"sum by (target) (rate(esper_transitions_total{$}[$__rate_interval])) * 3600": "{{target}}"},
        "stacked",
    ),
    Panel(
        "Rounds and live trials",
        "By how they ended, so far.",
        "none",
        {"sum by (trial, result) (esper_rounds_total{$})": "{{trial}}: {{result}}"},
    ),
    Panel(
        "Candidates",
        "By verdict, so far.",
        "none",
        {"sum by (verdict) (esper_candidates_total{$})": "{{verdict}}"},
        "stacked",
    ),
    Panel(
        "What gates were shown last",
        "Scores and gains, as gates judge them.",
        "none",
        {"esper_gate_value{$}": "{{run}}: {{value}}"},
    ),
)

_LENGTHS = "sum by (outcome) (esper_lifecycle_steps_{part}{{$}})"

_ENDS = (
    Panel(
        "Lifecycles by outcome",
        "So far.",
        "none",
        {"sum by (outcome) (esper_lifecycles_total{$})": "{{outcome}}"},
        "stacked",
    ),
    Panel(
        "Lifecycles by layer",
        "That became fossils, so far.",
        "none",
        {'sum by (run, layer) (esper_lifecycles_total{$,outcome="FOSSILIZED"})': "{{run}}: {{layer}}"},
    ),
    Panel(
        "Adaptations that lasted",
        "Share of lifecycles that became fossils.",
        "percentunit",
        {"esper_adaptation_success_ratio{$}": "{{run}}"},
    ),
    Panel(
        "Length of lifecycles",
        "Mean steps from germination to outcome.",
        "none",
        {f"{_LENGTHS.format(part='sum')} / ({_LENGTHS.format(part='count')} > 0)": "{{outcome}}"},
    ),
    Panel(
        "Lengths of lifecycles",
        "How many of all chosen runs took how many steps, so far.",
        "none",
        {"sum by (le) (esper_lifecycle_steps_bucket{$})": "{{le}}"},
        "classes",
    ),
    Panel(
        "Lines told",
        "By kind, a minute.",
        "none",
        {"sum by (event) (rate(esper_events_total{$}[$__rate_interval])) * 60 > 0": "{{event}}"},
    ),
)

BOARD = Board(
    "seed-health",
    "seed health",
    "What seeds do, where they do it, and what becomes of it.",
    {"Now": _NOW, "Verdicts": _VERDICTS, "Ends": _ENDS},
)
