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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from benchmarks.growth.arguments import at_least
from benchmarks.growth.sized import BYTES, SIZES
from benchmarks.machine import machine
from esper.cli.options import Options
from esper.contracts.commands import Command
from esper.contracts.errors import EsperError
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
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
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        device = torch.device(device_named(Options(device=options.device).device))
    except EsperError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    rows = []
    for name in options.hosts:
        host, usual = HOSTS[name]
        batch = options.batch or usual
        measure = _Measure(Setting(host, batch), device, options)
        rows += [{"host": name, "batch": batch, **row} for row in measure.rows()]
    how = {name: getattr(options, name) for name in ("precision", "compile", "repeats")}
    result = {"machine": machine(), **how, "rows": rows}
    print(table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


class _Measure:
    """Milliseconds (quartiles) and MiB at the most of steps of one host and what grows from it."""

    def __init__(self, setting: Setting, device: torch.device, options: argparse.Namespace) -> None:
        self._setting, self._device, self._repeats = setting, device, options.repeats
        self._has_bf16, self._backend = options.precision == "bf16", options.compile

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for every colony."""
        bare = self._of(self._host)
        for colony in COLONIES:
            yield {
                **dict(zip(("colony", "blueprint", "settings"), colony, strict=True)),
                "bare": bare,
                "live": self._of(partial(self._grown, *colony, LIVE)),
                "exported": self._of(partial(self._exported, *colony)),
            }

    def _host(self) -> nn.Module:
        torch.manual_seed(0)
        return self._setting.host().to(self._device)

    def _grown(self, layer_id: str, blueprint: str, settings: dict[str, Any], path: tuple[State, ...]) -> nn.Module:
        model = esper.wrap(self._host(), example=self._windows(2))
        place = place_named(model, layer_id)
        for target in path:
            command = Command(layer_id, "all", target, blueprint=blueprint, settings=settings)
            transition(place, command, birth=Birth(1, ramp_steps=1))
        place.state.alpha.fill_(1.0)
        return model

    def _exported(self, layer_id: str, blueprint: str, settings: dict[str, Any]) -> nn.Module:
        return esper.export(self._grown(layer_id, blueprint, settings, (*LIVE, *KEPT)), check=False)

    def _windows(self, count: int) -> Tensor:
        return torch.randint(0, BYTES, (count, self._setting.host.context), device=self._device)

    def _of(self, make: Callable[[], nn.Module]) -> dict[str, Any]:
        model = make()
        place = next((one for one in places(model) if one.arena.live), None)
        gc.collect()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x, y = self._windows(self._setting.batch), self._windows(self._setting.batch)
        run = model if self._backend is None else torch.compile(model, fullgraph=True, backend=self._backend)
        is_cuda = self._device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        for _ in range(3):
            self._step(run, place, optimizer, x, y)
        self._wait()
        mib = torch.cuda.max_memory_allocated(self._device) / 2**20 if is_cuda else None  # torch counts none on a CPU
        seconds = []
        for _ in range(self._repeats):
            start = time.perf_counter()
            self._step(run, place, optimizer, x, y)
            self._wait()
            seconds.append(time.perf_counter() - start)
        parameters = sum(one.numel() for one in model.parameters())
        return {"ms": [1e3 * one for one in statistics.quantiles(seconds, n=4)], "mib": mib, "parameters": parameters}

    def _step(
        self,
        model: Callable[[Tensor], Tensor],
        place: Place | None,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
    ) -> None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._has_bf16):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        if place is not None and (grad := place.arena.slots.grad) is not None:
            place.arena.slots.grad = None
            step_slots([(place, grad)], 1e-3, 0.01)
        optimizer.step()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, as the documents show them."""
    lines = [
        "| host | colony | parameters, before and after | ms: host | live colony | exported | live of exported "
        "| MiB: live colony | exported | live of exported |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bare, live, exported = (row[name] for name in ("bare", "live", "exported"))
        memory = ["", "", ""]
        if live["mib"] is not None:
            memory = [f"{live['mib']:,.0f}", f"{exported['mib']:,.0f}", f"{live['mib'] / exported['mib']:.2f}"]
        cells = [
            row["host"],
            f"{row['blueprint']} at `{row['colony']}`",
            f"{bare['parameters']:,}, {exported['parameters']:,}",
            *(f"{one['ms'][1]:.1f}" for one in (bare, live, exported)),
            f"{live['ms'][1] / exported['ms'][1]:.2f}",
            *memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.grafts.colonies", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=["0.25M"], help="by their parameters")
    parser.add_argument("--batch", type=at_least(1), help="windows of a step; left out: by host")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward pass")
    parser.add_argument("--compile", metavar="BACKEND", help="such as inductor; left out: eager")
    parser.add_argument("--repeats", type=at_least(2), default=20, help="steps of each model")
    parser.add_argument("--output", type=Path, default=RESULTS / "colonies.json", help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
