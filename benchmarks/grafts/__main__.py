"""``python -m benchmarks.grafts``: many grafts at one place beside one of the same total size, on the CPU.

A training step of the grafts is forward, backward and the step of the slots, of a Linear(1024, 1024) in the middle of a
network: its input takes a gradient. Many small grafts, one for each seed, and one over all seeds of as many
multiply-adds take turns. Then one command germinates 1,024 seeds of one place, and one plants them all.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import esper
from benchmarks.machine import machine
from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.commands import Command, SeedIds
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import step_slots

RESULT = Path(__file__).parent.parent / "results" / "grafts" / "cpu.json"
CHANNELS, BATCH, GRAFTS, SEEDS = 1024, 256, 64, 1024
MOST_TIMES, MOST_GERMINATION_S, MOST_PLANTING_S = 3.0, 1.0, 5.0


def main() -> None:
    """Measure, print, write ``cpu.json``."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    steps = []
    print(f"Linear({CHANNELS}, {CHANNELS}), batch {BATCH}, one thread: {GRAFTS} grafts against one of their size")
    for reads in ("input", "chunk"):
        for hidden in options.hidden:
            figure = _step_times(reads, hidden, options.repeats)
            steps.append(figure)
            print(_line(figure), flush=True)
    lifecycles = _lifecycle_times(options.repeats_of_lifecycles)
    for name, most in {"germination": MOST_GERMINATION_S, "planting": MOST_PLANTING_S}.items():
        low, middle, high = lifecycles[name]
        verdict = _verdict(middle, most)
        print(f"{name} of {SEEDS} seeds: {middle:.2f} s (quartiles {low:.2f} to {high:.2f}), {verdict}: {most:g} s")
    result: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "setting": {"channels": CHANNELS, "batch": BATCH, "grafts": GRAFTS, "seeds": SEEDS, **vars(options)},
        "steps_ms": steps,
        "lifecycles_s": lifecycles,
    }
    result["setting"]["output"] = options.output.name
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


def _grown(seed_ids: SeedIds, hidden: int, reads: str) -> tuple[nn.Module, Place]:
    """A host whose only layer has live grafts with parameters that are not zero."""
    torch.manual_seed(0)
    config = esper.GrowthConfig(layers={"0": GRAFTS})
    model = esper.wrap(nn.Sequential(nn.Linear(CHANNELS, CHANNELS)), config)
    place = place_named(model, "0")
    settings = {"hidden": hidden, "reads": reads}
    for target in (State.GERMINATED, State.TRAINING, State.GRAFTING):
        command = Command("0", seed_ids, target, blueprint="bottleneck_mlp", settings=settings)
        transition(place, command, birth=Birth(1, ramp_steps=1))
    place.state.alpha.fill_(0.5)
    with torch.no_grad():
        place.arena.slots.normal_(0, 0.02)
    return model, place


def _step(model: nn.Module, place: Place, x: Tensor, gradient: Tensor) -> None:
    model.zero_grad()
    model(x).backward(gradient)
    if (grad := place.arena.slots.grad) is not None:
        step_slots([(place, grad)], 1e-3, 0.01)


def _step_times(reads: str, hidden: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step: quartiles; ``times`` are those of paired ratios."""
    width = CHANNELS // GRAFTS
    many = GRAFTS * _multiply_adds(hidden, width if reads == "chunk" else CHANNELS, width)
    of_one = max(1, round(many / _multiply_adds(1, CHANNELS, CHANNELS)))
    hosts = {
        "bare": (model := nn.Sequential(nn.Linear(CHANNELS, CHANNELS)), None),
        "one": _grown("all", of_one, reads),
        "many": _grown(tuple(range(GRAFTS)), hidden, reads),
    }
    x, gradient = torch.randn(BATCH, CHANNELS, requires_grad=True), torch.randn(BATCH, CHANNELS)

    def bare() -> None:
        model.zero_grad()
        model(x).backward(gradient)

    calls: dict[str, Callable[[], None]] = {"bare": bare}
    for name in ("one", "many"):
        grown, place = hosts[name]
        assert place is not None
        calls[name] = lambda grown=grown, place=place: _step(grown, place, x, gradient)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-3, repeats):  # three to warm up
        for name in calls if repeat % 2 else reversed(calls):
            start = time.perf_counter()
            calls[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    figure: dict[str, Any] = {"reads": reads, "hidden": hidden, "hidden of one": of_one}
    figure |= {name: [1e3 * value for value in _quartiles(series)] for name, series in seconds.items()}
    figure["times"] = _quartiles([many / one for many, one in zip(seconds["many"], seconds["one"], strict=True)])
    return figure


def _lifecycle_times(repeats: int) -> dict[str, list[float]]:
    """Seconds in which one command germinates all seeds of a place through a session, and one plants them."""
    seconds: dict[str, list[float]] = {"germination": [], "planting": []}
    for _ in range(repeats):
        torch.manual_seed(0)
        config = esper.GrowthConfig(layers={"0": SEEDS}, max_active_seeds=SEEDS, max_growth=1e9, objective="none")
        model = esper.wrap(nn.Sequential(nn.Linear(CHANNELS, CHANNELS)), config)
        session = esper.Session(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            loss=lambda model, batch: model(batch).square().mean(),
            evaluate=lambda model: esper.Evaluation(losses=torch.ones(64)),
            planned_steps=100,
        )
        command = Command(
            "0", tuple(range(SEEDS)), State.GERMINATED, blueprint="bottleneck_mlp", settings={"hidden": 1}, trial="live"
        )
        start = time.perf_counter()
        answer = session.submit(command)
        seconds["germination"].append(time.perf_counter() - start)
        assert answer.accepted, answer.reason
        place = place_named(model, "0")
        transition(place, Command("0", tuple(range(SEEDS)), State.TRAINING))
        start = time.perf_counter()
        transition(place, Command("0", tuple(range(SEEDS)), State.GRAFTING))
        seconds["planting"].append(time.perf_counter() - start)
        assert len(place.arena.live) == SEEDS
    return {name: _quartiles(series) for name, series in seconds.items()}


def _multiply_adds(hidden: int, inputs: int, outputs: int) -> int:
    """Of one row, without biases: those are counted as multiply-adds, but do no matrix work."""
    weights = BottleneckMLP(hidden=hidden).shapes(Ports(inputs, outputs))
    return sum(rows * columns for rows, columns in (weights["w1"], weights["w2"]))


def _quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4)


def _line(figure: dict[str, Any]) -> str:
    (_, bare, _), (_, one, _), (_, many, _) = figure["bare"], figure["one"], figure["many"]
    low, middle, high = figure["times"]
    return (
        f"reads {figure['reads']}, hidden {figure['hidden']}: bare {bare:.1f}, one {one:.1f}, many {many:.1f} ms, "
        f"{middle:.2f} times (quartiles {low:.2f} to {high:.2f}), {_verdict(middle, MOST_TIMES)}: {MOST_TIMES:g} times"
    )


def _verdict(value: float, most: float) -> str:
    return "target met" if value <= most else "target MISSED"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.grafts", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = BottleneckMLP().hidden
    parser.add_argument("--hidden", type=int, nargs="+", default=[4, default, 64], help="hidden width of each graft")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each host")
    parser.add_argument("--repeats-of-lifecycles", type=int, default=5, help="fresh hosts of 1,024 seeds")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
