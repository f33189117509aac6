"""The tables of ``docs/scaling.md`` and its picture, from what the measurements have kept."""

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from benchmarks.measurements import RESULTS
from benchmarks.scaling import queueing
from benchmarks.scaling.model import Constants, Host, by_ranks, hosts, memory, read, row

GPUS = (1, 8, 64, 512, 4096, 10_000)
RUNS = (100, 300, 1000, 3000, 10_000, 30_000)
PICTURE = RESULTS / "scaling" / "scaling.svg"


def show() -> None:
    """Print all of it, and draw."""
    of, control = Constants.measured(), read("scaling", "control")
    for title, rows in {
        "Memory of each GPU": [_memory(host, of) for host in hosts()],
        **{f"{host.name} on so many GPUs": [_row(host, of, gpus) for gpus in GPUS] for host in hosts()},
        "The processor's part, by layers with seeds": read("scaling", "sizes")["layers"],
        "Exchanges on the host": _exchanges(),
        "One run on the bus": control["one run"]["reports"],
        "Its questions": control["one run"]["questions"],
        "Many runs": [_lean(one) for one in (*control["everyone asks"], control["10,000 runs"])],
        "A bus that loses": [_lean(control["a bus that loses"])],
        "A controller": [_rounded(one) for one in control["a controller"]["loads"]],
    }.items():
        print(f"\n### {title}\n\n{_table(rows)}")
    service = {name: one for name, one in control["a controller"].items() if name not in ("loads", "service s")}
    print(f"\nA controller, of runs of ten layers: {service}")
    print(f"Full at {service['questions a second'] * service['period s']:,.0f} such runs")
    print(f"Measured on two GPUs: {1 / of.dormant - 1:.1%} slower asleep, {1 / of.growing - 1:.1%} with two grafts")
    print(f"A rank meets all others: {of.meet_us} us; hears rank 0: {of.tell_us} us; sockets: {of.sockets}")
    print(f"More for a step by layers with seeds: {of.step_s} s; with 100,000: {of.step_s.at(100_000):.0f} s")
    print(f"Bytes of a gather of 1 KB: {of.gather_bytes}; of a line that waits: {of.line_bytes}")
    print(f"At a boundary {of.meetings} meetings, {of.told} times rank 0 tells; at a step {of.per_step} collectives")
    print(f"Checksums: {read('scaling', 'sizes')['checksum s for a billion parameters']} s for a billion parameters")
    for host in hosts():
        print(
            f"{host.name}: {host.parameters:,} parameters; {12e-9 * host.parameters * of.write_s:.0f} s to write them"
        )
    _draw(of, control["a controller"])


def _memory(host: Host, of: Constants) -> dict[str, str]:
    told, many = memory(host, of), memory(host, of, seeds=1000)
    return {
        "model": host.name,
        "layers with seeds": f"{host.places}",
        "weights, gradients, AdamW": _bytes(told.model),
        "64 seeds a layer": _bytes(told.seeds),
        "1,000 seeds a layer": _bytes(many.seeds),
        "two grafts": _bytes(told.grafts),
        "all of Esper": f"{(told.seeds + told.grafts) / told.model:.3%}",
    }


def _row(host: Host, of: Constants, gpus: int) -> dict[str, str]:
    told = row(host, of, gpus)
    found = {
        "GPUs": f"{gpus:,}",
        "DDP sends, a step": _bytes(told.gradients),
        "Esper, seeds that sleep": _bytes(told.dormant),
        "two grafts": _bytes(told.growing),
        "at a boundary": _bytes(told.boundary),
        "exchanges on the host": _time(told.meeting_ms),
        "sockets of a rank": f"{told.sockets:,.0f}",
        "a checkpoint of all ranks": _bytes(told.checkpoints),
    }
    if host.name != "7B" and gpus > 1:  # a step was measured of the small one, on several GPUs
        found |= {"slower, asleep": f"{told.slower_dormant:.1%}", "two grafts, slower": f"{told.slower_growing:.1%}"}
    return found


def _exchanges() -> list[dict[str, Any]]:
    found = read("scaling", "exchanges")
    return [
        {"ranks": ranks, "exchange": name, "sockets": one["sockets"], **figures}
        for ranks, one in found.items()
        for name, figures in one["exchanges"].items()
    ]


def _lean(found: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:,}" for name, value in found.items()}


def _rounded(found: dict[str, float]) -> dict[str, Any]:
    return {name: f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" for name, value in found.items()}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for one in rows for name in one))
    lines = [names, ["---"] * len(names), *([str(one.get(name, "")) for name in names] for one in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bytes(number: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def _draw(of: Constants, controller: dict[str, Any]) -> None:
    """What ranks exchange on the host, and how long a decision takes."""
    pyplot.rcParams |= {"svg.hashsalt": "esper", "svg.fonttype": "none"}  # the same bytes each time; text as text
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    exchanges, numbers = read("scaling", "exchanges"), [2**power for power in range(1, 14)]
    for name, law in {"check_equal": of.meet_us, "same, 1 KB": of.tell_us}.items():
        found = by_ranks(exchanges, name, "least")
        [drawn] = left.plot(numbers, [1e-3 * law.at(one) for one in numbers], linestyle=":")
        left.plot(list(found), [1e-3 * one for one in found.values()], "o", color=drawn.get_color(), label=name)
    left.set(title="One exchange on the host, measured and its law", xlabel="ranks", ylabel="ms")
    for controllers in (1, 4, 16):
        found_s = [
            (runs, told["p99"])
            for runs in RUNS
            if (told := queueing.waits(runs, controller["period s"], controllers, controller["service s"]))["load"] < 1
        ]
        right.plot([one for one, _ in found_s], [1e3 * one for _, one in found_s], "o-", label=f"{controllers}")
    right.set(title="99 of 100 decisions take less, by controllers", xlabel="runs that ask once a minute", ylabel="ms")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PICTURE, metadata={"Date": None})
    pyplot.close(figure)
