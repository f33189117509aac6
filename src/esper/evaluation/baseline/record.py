"""Measures a baseline: every cell in a process of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import esper
from esper.contracts.errors import ConfigError
from esper.evaluation.baseline.adaptation import Adaptation, Spread
from esper.evaluation.baseline.cells import WHAT, Cell, CellWorker, Setting
from esper.evaluation.baseline.performance import CellResult, PerformanceBaseline
from esper.evaluation.baseline.sides import SOURCE_FOLDER
from esper.evaluation.git_trees import commit_named, is_clean, repository_of
from esper.evaluation.machine import machine, machine_id

SOURCES = Path(esper.__file__).resolve().parents[1]
_FEWEST_CALLS, _MOST_CALLS = 104, 2000  # a hundred, for the 99th percentile, in cycles of eight


def record(
    cells: Sequence[Cell],
    setting: Setting,
    adaptation: Adaptation,
    *,
    seconds: float = 1.0,
    on_cell: Callable[[CellResult], None] = lambda result: None,
) -> PerformanceBaseline:
    """Measure the Esper that is imported here.

    Args:
        cells: what is measured.
        setting: device and threads.
        adaptation: what growth comes to.
        seconds: that each kind of call is timed for, about.
        on_cell: hears every cell once it is measured.

    Raises:
        ConfigError: if the setting cannot be measured here.
        EvaluationError: if a cell cannot.
    """
    setting.check()
    commit, clean = _commit()
    results = []
    for cell in cells:
        results.append(_measured(cell, setting, seconds))
        on_cell(results[-1])
    version = esper.__version__
    return PerformanceBaseline(version, commit, clean, machine(), machine_id(), setting, tuple(results), adaptation)


def _measured(cell: Cell, setting: Setting, seconds: float) -> CellResult:
    with CellWorker(SOURCES, str(cell)) as worker:
        memory = worker.build(cell, setting)
        latency_ms = {}
        for what in WHAT:
            calls = min(max(worker.calls_in(what, seconds), _FEWEST_CALLS), _MOST_CALLS)
            latency_ms[what] = Spread.of(worker.seconds(what, calls), unit=1e-3)
        busy = worker.throughput(seconds)
    reasons = {
        "host_bytes": "this system has no /proc/self/status",
        "device_bytes": "nothing runs on a GPU",
        "gpu_utilisation": busy.pop("why_no_gpu_utilisation"),
    }
    figures = memory | busy
    unmeasured = {name: reason for name, reason in reasons.items() if figures[name] is None}
    return CellResult(cell.batch_size, cell.seeds, cell.channels, latency_ms, **figures, unmeasured=unmeasured)


def _commit() -> tuple[str | None, bool | None]:
    """The commit that our sources lie in, and whether they are as they are there."""
    try:
        repository = repository_of(SOURCES)
    except ConfigError:  # installed from a package, or no git
        return None, None
    if repository / SOURCE_FOLDER != SOURCES:  # an environment within some other repository
        return None, None
    return commit_named(repository, "HEAD"), is_clean(repository, SOURCES)
