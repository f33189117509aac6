"""``esper profile``: prints what Esper costs in a step."""

from pathlib import Path

from esper.cli.asked_task import asked_task
from esper.cli.options import Options
from esper.evaluation.profiling import KINDS, Profile, profiled
from esper.evaluation.ranges import TRAINING


def show(options: Options, steps: int, trace: Path) -> None:
    """Profile steps of such a run, print a table and write a trace.

    Raises:
        ConfigError: if the run cannot be made, or nothing can grow in it.
    """
    found = profiled(
        asked_task(options),
        options.growth,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule=options.schedule,
        seed=options.seed,
        epochs=options.epochs,
        steps_per_epoch=options.steps_per_epoch,
        steps=steps,
        trace=trace,
    )
    print("\n".join(_lines(found)))


def _lines(found: Profile) -> list[str]:
    bare = found.step_ms["bare"]
    lines = [f"{found.steps} steps of each kind on {found.device}; the graft: {found.graft}", ""]
    lines.append(f"{'a step':14}{'median ms':>10}{'processor ms':>14}  against the bare host")
    for kind in KINDS:
        more = found.step_ms[kind] - bare
        against = "" if kind == "bare" else f"  {more:+.3f} ms, {more / bare:+.1%}"
        lines.append(f"{kind:14}{found.step_ms[kind]:>10.3f}{found.processor_ms[kind]:>14.3f}{against}")
    for kind, ranges in found.ranges.items():
        has_device = any(one.device_us for one in ranges)
        device = f"{'device us':>11}" if has_device else ""
        lines += ["", f"{f'{kind}: in a profiled step':46}{'calls':>7}{'own us':>10}{device}"]
        for one in ranges:
            device = f"{one.device_us:>11.1f}" if has_device else ""
            lines.append(f"  {one.name:44}{one.calls / found.steps:>7.2f}{one.own_us:>10.1f}{device}")
    lines += ["", f"Own time is without the ranges within. What grafts add to the backward pass is in {TRAINING!r}."]
    return [*lines, f"Trace for chrome://tracing or ui.perfetto.dev: {found.trace}"]
