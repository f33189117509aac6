"""``esper baseline``: measures and prints."""

import statistics
from pathlib import Path

import torch

from esper.cli.commands.baseline import BaselineCommand
from esper.evaluation.baseline.adaptation import Adaptation, adaptation_of, grown_here
from esper.evaluation.baseline.beside import beside
from esper.evaluation.baseline.cells import BATCH_SIZES, SEEDS, WHAT, Cell, Setting
from esper.evaluation.baseline.compare import Compared, Rules, Timed, compare
from esper.evaluation.baseline.comparison import told, verdict
from esper.evaluation.baseline.performance import CellResult, PerformanceBaseline, write_json
from esper.evaluation.baseline.record import record
from esper.evaluation.baseline.sides import sides
from esper.runtime.interrupt import Interrupt

_QUICK = Cell(32, 100)
_QUICK_S, _CELL_S = 0.2, 1.0
_COMPARED_BATCH_SIZES = (32, 256)

_CONCLUSIONS = {
    "regression": "A regression: what is marked so is slower by more than {:.0%}, or larger by more than {:.0%}.",
    "fine": "No regression: nothing is slower by more than {:.0%}, or larger by more than {:.0%}.",
    "undecided": (
        "No regression was shown, but what is undecided may be slower by more than {:.0%} (memory: {:.0%}). Measure on "
        "a quieter machine, or with more --blocks."
    ),
}


def record_here(command: BaselineCommand) -> bool:
    """Measure, print, and write a baseline."""
    output = command.output
    assert output is not None
    cells, setting = _cells(command, BATCH_SIZES), _setting(command)
    setting.check()
    runs = range(1 if command.quick else 3)
    adaptation = adaptation_of(command.runs) if command.runs else grown_here(runs)
    print(f"{'cell':<28}{'forward':>12}{'step':>12}{'live step':>12}{'samples/s':>12}{'host':>10}{'seeds':>12}")
    seconds = _QUICK_S if command.quick else _CELL_S
    baseline = record(cells, setting, adaptation, seconds=seconds, on_cell=lambda one: print(_line(one), flush=True))
    baseline.write(output)
    print(f"{_adapted(adaptation)}\nWritten to {output}")
    return True


def compare_sides(command: BaselineCommand) -> bool:
    """Measure both sides in turns and print; gives whether no regression was found."""
    setting, rules = _setting(command), Rules(**command.rules)
    setting.check()
    assert command.base is not None
    both = sides(Path.cwd(), command.base, null=command.null)
    print(f"{both.change_name} against {both.base_name}, {setting.device}, in turns")
    print(f"{'cell':<28}{'':<14}{'base':>12}{'change':>12}{'slower by':>11}{'interval':>20}{'blocks':>8}  verdict")
    found: list[Compared] = []
    with Interrupt(), both.sources() as sources:
        names = both.base_name, both.change_name
        for one in compare(*sources, _cells(command, _COMPARED_BATCH_SIZES), setting, rules, names):
            found.append(one)
            print(_compared(one), flush=True)
    if command.output is not None:
        write_json(command.output, told(both, setting, rules, found))
    print(f"\n{_CONCLUSIONS[verdict(found)].format(rules.threshold, rules.memory_threshold)}")
    return verdict(found) != "regression"


def show_beside(old: Path, new: Path) -> bool:
    """Print two baselines side by side."""
    rows = beside(PerformanceBaseline.read(old), PerformanceBaseline.read(new))
    print(f"{'cell':<28}{'figure':<20}{'old':>16}{'new':>16}{'change':>10}")
    for row in rows:
        change = f"{row.new / row.old - 1:+.1%}" if row.old else ""
        print(f"{row.cell!s:<28}{row.name:<20}{row.old:>16,.3f}{row.new:>16,.3f}{change:>10}")
    print(
        "\nTaken at different times, so this shows no regression and rules none out: 'esper baseline compare --base "
        "COMMIT' measures both sides in one run."
    )
    return True


def _cells(command: BaselineCommand, batch_sizes: tuple[int, ...]) -> list[Cell]:
    if command.quick:
        return [_QUICK]
    return [Cell(batch, seeds) for batch in command.batch_sizes or batch_sizes for seeds in command.seeds or SEEDS]


def _setting(command: BaselineCommand) -> Setting:
    return Setting(command.device or ("cuda" if torch.cuda.is_available() else "cpu"), command.threads)


def _line(one: CellResult) -> str:
    latencies = "".join(f"{one.latency_ms[what].p50:>9.3f} ms" for what in WHAT)
    host = "unknown" if one.host_bytes is None else f"{one.host_bytes / 2**20:.0f} MiB"
    return f"{one.cell!s:<28}{latencies}{one.samples_per_s:>12,.0f}{host:>10}{one.state_bytes / 2**10:>8.0f} KiB"


def _adapted(adaptation: Adaptation) -> str:
    if adaptation.success_rate is None or adaptation.steps is None or adaptation.seconds is None:
        return f"Growth: nothing was tried in {adaptation.runs} runs ({adaptation.source})."
    steps, seconds = adaptation.steps, adaptation.seconds
    return (
        f"Growth: {adaptation.success_rate:.0%} of {steps.count} grafts that were tried in {adaptation.runs} runs "
        f"stayed; one takes {steps.mean:,.0f} steps, {seconds.mean:.2f} s ({adaptation.source})."
    )


def _compared(one: Compared) -> str:
    head = f"{one.cell!s:<28}{one.what:<14}"
    if not isinstance(one, Timed):
        return f"{head}{one.base_bytes:>12,}{one.change_bytes:>12,}{one.growth:>+11.1%}{'':>28}  {one.verdict}"
    base, change = (f"{1e3 * statistics.median(side):.3f} ms" for side in (one.base_s, one.change_s))
    high = "unknown" if one.known_high is None else f"{one.known_high:+.1%}"
    interval = f"{one.slowdown.low:+.1%} to {high}"
    return f"{head}{base:>12}{change:>12}{one.estimate:>+11.1%}{interval:>20}{len(one.base_s):>8}  {one.verdict}"
