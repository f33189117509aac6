"""``python -m benchmarks.grafts.colonies``: a training step with a live colony beside one of the network it becomes.

Forward, backward, AdamW, and the step of the slots, of byte-level transformers. The network that it becomes is the
export of the same colony once it is a fossil: plain layers of the new widths, or more blocks. Each model is alone on
the device while it is measured.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from benchmarks.growth.sized import BYTES, SIZES
from benchmarks.machine import machine
from esper.cli.options import Options
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import step_slots
from esper.tasks.gpt import GPTHost
from esper.tasks.placed import device_named

RESULTS = Path(__file__).parent.parent / "results" / "grafts"
LIVE = (State.GERMINATED, State.TRAINING, State.GRAFTING)
KEPT = (State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED)


class Setting(NamedTuple):
    """A host, and how many windows a step reads."""

    host: GPTHost
    batch: int


HOSTS = {name: Setting(SIZES[name].host, 64) for name in ("quick", "0.25M", "1M", "5M", "20M")} | {
    "85M": Setting(GPTHost(BYTES, 1024, 768, 4 * 768, 12, 12), 16)
}
COLONIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("*", "widen", {"percent": 50}),
    ("blocks.*.mlp", "widen", {"percent": 150}),
    ("blocks.*", "deepen", {}),
)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write the result."""
    options = _parser().parse_args(arguments)
    device = torch.device(device_named(Options(device=options.device).device))
    torch.set_num_threads(1)
    rows = []
    for name in options.hosts:
        setting = HOSTS[name]._replace(**({"batch": options.batch} if options.batch else {}))
        measure = _Measure(setting, device, options.precision, options.repeats)
        rows += [{"host": name, "batch": setting.batch, **row} for row in measure.rows()]
    result = {"machine": machine(), "precision": options.precision, "repeats": options.repeats, "rows": rows}
    print(table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


class _Measure:
    """Milliseconds (quartiles) and MiB at the most of steps of one host and what grows from it."""

    def __init__(self, setting: Setting, device: torch.device, precision: str, repeats: int) -> None:
        self._setting, self._device, self._repeats = setting, device, repeats
        self._has_bf16 = precision == "bf16"

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for every colony."""
        host = self._of(lambda: (self._host(), None))
        for layer_id, blueprint, settings in COLONIES:
            told = {"colony": layer_id, "blueprint": blueprint, "settings": settings, "bare": host}
            live = self._of(lambda: self._grown(layer_id, blueprint, settings, LIVE))  # noqa: B023
            grown = self._of(lambda: (self._exported(layer_id, blueprint, settings), None))  # noqa: B023
            yield told | {"live": live, "exported": grown}

    def _host(self) -> nn.Module:
        torch.manual_seed(0)
        return self._setting.host().to(self._device)

    def _grown(
        self, layer_id: str, blueprint: str, settings: dict[str, Any], path: tuple[State, ...]
    ) -> tuple[nn.Module, Place]:
        model = esper.wrap(self._host(), example=self._windows(2))
        place = place_named(model, layer_id)
        for target in path:
            command = Command(layer_id, "all", target, blueprint=blueprint, settings=settings)
            transition(place, command, birth=Birth(1, ramp_steps=1))
        place.state.alpha.fill_(1.0)
        return model, place

    def _exported(self, layer_id: str, blueprint: str, settings: dict[str, Any]) -> nn.Module:
        model, _ = self._grown(layer_id, blueprint, settings, (*LIVE, *KEPT))
        return esper.export(model, check=False)

    def _windows(self, count: int) -> Tensor:
        return torch.randint(0, BYTES, (count, self._setting.host.context), device=self._device)

    def _of(self, make: Callable[[], tuple[nn.Module, Place | None]]) -> dict[str, Any]:
        model, place = make()
        gc.collect()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x, y = self._windows(self._setting.batch), self._windows(self._setting.batch)
        with _peak(self._device) as peak:
            for _ in range(3):
                self._step(model, place, optimizer, x, y)
        seconds = []
        for _ in range(self._repeats):
            start = time.perf_counter()
            self._step(model, place, optimizer, x, y)
            self._wait()
            seconds.append(time.perf_counter() - start)
        parameters = sum(one.numel() for one in model.parameters())
        return {"ms": [1e3 * one for one in statistics.quantiles(seconds, n=4)], "mib": peak, "parameters": parameters}

    def _step(
        self, model: nn.Module, place: Place | None, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._has_bf16):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        if place is not None and (grad := place.arena.slots.grad) is not None:
            place.arena.slots.grad = None
            step_slots(place, grad, 1e-3, 0.01)
        optimizer.step()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """Takes the MiB that tensors took at the most; nothing on a CPU, where torch does not count them."""
    found: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found.append(torch.cuda.max_memory_allocated(device) / 2**20)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, as the documents show them."""
    lines = [
        "| host | colony | parameters, before and after | ms: host | live colony | exported | live of exported "
        "| MiB: live colony | exported | live of exported |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bare, live, exported = (row[name] for name in ("bare", "live", "exported"))
        memory = [one["mib"][0] for one in (live, exported) if one["mib"]]
        shares = [f"{memory[0]:,.0f}", f"{memory[1]:,.0f}", f"{memory[0] / memory[1]:.2f}"] if memory else ["", "", ""]
        cells = [
            row["host"],
            f"{row['blueprint']} at `{row['colony']}`",
            f"{bare['parameters']:,}, {exported['parameters']:,}",
            *(f"{one['ms'][1]:.1f}" for one in (bare, live, exported)),
            f"{live['ms'][1] / exported['ms'][1]:.2f}",
            *shares,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.grafts.colonies", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=["0.25M"], help="by their parameters")
    parser.add_argument("--batch", type=int, help="windows of a step; left out: by host")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward pass")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each model")
    parser.add_argument("--output", type=Path, default=RESULTS / "colonies.json", help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
