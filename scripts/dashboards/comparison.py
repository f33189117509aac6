"""*Performance comparison*: runs side by side, by what they cost and what they came to."""

from scripts.dashboards.panel import Board, Panel

_ARMS = 'sum by (run) (esper_flops_total{$,purpose!="run"})'


def _rate(part: str) -> str:
    return f"rate(esper_step_seconds_{part}{{$}}[$__rate_interval])"


def _quantile(share: float) -> str:
    return f"histogram_quantile({share:g}, sum by (run, le) (rate(esper_step_seconds_bucket{{$}}[$__rate_interval])))"


_RESULT = (
    Panel(
        "Held-out loss",
        "At the last boundary. Only runs of one task compare.",
        "none",
        {"esper_select_loss{$}": "{{run}}"},
        "bars",
    ),
    Panel("Metric of the task", "At the last boundary.", "none", {"esper_select_metric{$}": "{{run}}"}, "bars"),
    Panel(
        "Size against the host's",
        "All parameters as a multiple of those with which the host began.",
        "none",
        {"1 + esper_grown_parameters{$} / esper_host_parameters{$}": "{{run}}"},
        "bars",
    ),
)

_STEPS = (
    Panel(
        "Steps per second",
        "Arms and boundaries in between counted as time.",
        "ops",
        {"esper_steps_per_second{$}": "{{run}}"},
    ),
    Panel(
        "Time of a step, mean",
        "On the host, without a wait for the device. Over many steps the mean is right on a GPU too.",
        "s",
        {f"{_rate('sum')} / {_rate('count')}": "{{run}}"},
    ),
    Panel("Time of a step, median", "Within the classes of the histogram.", "s", {_quantile(0.5): "{{run}}"}),
    Panel("Time of a step, 95 of 100", "Within the classes of the histogram.", "s", {_quantile(0.95): "{{run}}"}),
    Panel(
        "Times of steps",
        "How many steps of all chosen runs took how long.",
        "s",
        {"sum by (le) (increase(esper_step_seconds_bucket{$}[$__rate_interval]))": "{{le}}"},
        "classes",
    ),
    Panel("Steps", "Batches done.", "none", {"esper_step{$}": "{{run}}"}),
)

_FLOPS = (
    Panel(
        "FLOPs by purpose",
        "Of all chosen runs together: the runs themselves, arms, judging.",
        "short",
        {"sum by (purpose) (esper_flops_total{$})": "{{purpose}}"},
        "stacked",
    ),
    Panel(
        "FLOPs by run", "Of a run and all that it tries.", "short", {"sum by (run) (esper_flops_total{$})": "{{run}}"}
    ),
    Panel(
        "Share that goes into trying",
        "Arms and judging, of all FLOPs of a run.",
        "percentunit",
        {f"{_ARMS} / sum by (run) (esper_flops_total{{$}})": "{{run}}"},
    ),
)

_MACHINE = (
    Panel("Memory of the host", "That the process of a run holds.", "bytes", {"esper_memory_bytes{$}": "{{run}}"}),
    Panel("Memory of the device", "Held by tensors.", "bytes", {"esper_device_memory_bytes{$}": "{{run}}"}),
    Panel(
        "Memory of the device, peak",
        "The most since the process began.",
        "bytes",
        {"esper_device_memory_peak_bytes{$}": "{{run}}"},
    ),
    Panel(
        "Use of the GPU",
        "Share of time in which the device was busy.",
        "percentunit",
        {"esper_gpu_utilisation_ratio{$}": "{{run}}"},
    ),
    Panel("Time of a checkpoint", "How long the last took.", "s", {"esper_checkpoint_duration_seconds{$}": "{{run}}"}),
    Panel("Size of a checkpoint", "Of the last.", "bytes", {"esper_checkpoint_bytes{$}": "{{run}}"}),
    Panel("Checkpoints", "Written since the process began.", "none", {"esper_checkpoints_total{$}": "{{run}}"}),
)

BOARD = Board(
    "performance-comparison",
    "performance comparison",
    "Runs side by side: what they came to, and what they cost.",
    {"What they came to": _RESULT, "Steps": _STEPS, "FLOPs": _FLOPS, "Machine": _MACHINE},
)
