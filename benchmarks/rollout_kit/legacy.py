"""The old layer beside the new one, with one seed and one chunk: what they compute, and how long it takes.

Both stand in the same state with the same bytes: dormant, half blended in, a fossil. They take turns in short blocks
of CPU time, in an order that alternates; a figure is the median of the ratios of neighbouring blocks with the bounds of
its 95 % bootstrap interval. Two more tell where the time goes: the new layer without telemetry, and without
the guard against grafts that are not finite; and a third, what ``esper.export`` makes of the new one.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.grafts import arena
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.lifecycle import Birth, transition
from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer

RAMP_STEPS, BLOCKS, BLOCK_S = 20, 40, 0.02
WIDTH, ROWS = 512, 256
SIZES = ((64, 64), (256, 128), (1024, 256))
"""Channels and rows."""

STATES = {"dormant": 0, "half blended in": RAMP_STEPS // 2, "fossil": RAMP_STEPS}
"""Steps of the ramp that are done."""

PROMOTIONS = (State.GERMINATED, State.TRAINING, State.GRAFTING)
SETTLING = (State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED)


def pair(channels: int, steps: int, rows: int = 24) -> tuple[LegacyKasminaLayer, nn.Module]:
    """An old and a new layer of the same bytes, after as many steps of the ramp.

    Args:
        channels: read and written.
        steps: 0 is dormant.
        rows: vectors at which the new layer's seed looks.
    """
    base = nn.Linear(channels, channels)
    new = esper.wrap(copy.deepcopy(base), esper.GrowthConfig(layers={"": 1}, telemetry_rows=rows))
    old = LegacyKasminaLayer(base, LegacyConfig(ramp_steps=RAMP_STEPS))
    if steps:
        old.request_germination(0, "bottleneck_mlp")
        old.begin_grafting(torch.optim.SGD(base.parameters(), lr=0.1))
        for parameter in old.graft.values():
            nn.init.normal_(parameter, std=0.1)
        for _ in range(steps):
            old.advance()
        _grow_like(new, old)
    return old, new


def _grow_like(new: nn.Module, old: LegacyKasminaLayer) -> None:
    (place,) = places(new)
    for target in PROMOTIONS:
        transition(place, Command("", 0, target, blueprint="bottleneck_mlp"), birth=Birth(1, RAMP_STEPS))
    graft = place.arena.grafts[1]
    with torch.no_grad():
        place.arena.params_of(graft).copy_(graft.flatten(dict(old.graft.items())))
    place.state.alpha.fill_(old.alpha)
    for target in SETTLING if old.alpha == 1 else ():
        transition(place, Command("", 0, target))


def difference(channels: int, steps: int, batch: Tensor) -> float:
    """Largest difference of outputs, relative to the root mean square of the old layer's."""
    old, new = pair(channels, steps)
    with torch.no_grad():
        wanted, found = old(batch), new(batch)
    return float((wanted - found).abs().max() / wanted.square().mean().sqrt())


def _forward(layer: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        layer(batch)


def _forward_backward(layer: nn.Module, batch: Tensor) -> None:
    layer(batch).sum().backward()


@contextmanager
def _without_guard() -> Iterator[None]:
    """Grafts are taken to be finite, unseen."""
    with (
        patch.object(arena, "finite_G", lambda values: torch.ones(len(values), dtype=torch.bool)),
        patch.object(arena, "select_G", lambda keep, values, otherwise=0.0: values),
        patch.object(arena.Entry, "apply", lambda x, params, watch, shared: (x.expand(1, *x.shape), params)),
        patch.object(arena.Exit, "apply", lambda delta, watch: delta),
    ):
        yield


def perceptrons(steps: int) -> tuple[nn.Module, nn.Module]:
    """Two perceptrons of the same bytes, of three old and of three new layers, after as many steps of their ramps."""
    pairs = [pair(WIDTH, steps) for _ in range(3)]
    old = [step for one, _ in pairs for step in (one, nn.ReLU())]
    new = [step for _, one in pairs for step in (one, nn.ReLU())]
    return nn.Sequential(*old), nn.Sequential(*new)


def _step_of(model: nn.Module, batch: Tensor) -> Callable[[], None]:
    """A training step in a loop of one's own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return step


def ratio(
    first: Callable[[], None],
    second: Callable[[], None],
    around_second: Callable[[], AbstractContextManager[None]] = nullcontext,
    blocks: int = BLOCKS,
) -> dict[str, float]:
    """CPU time of the second over that of the first."""
    count = max(1, round(BLOCK_S / (_seconds(first, 5) / 5)))
    ratios = []
    for block in range(blocks):
        taken = {}
        for is_second in (False, True) if block % 2 else (True, False):
            with around_second() if is_second else nullcontext():
                taken[is_second] = _seconds(second if is_second else first, count)
        ratios.append(taken[True] / taken[False])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": round(float(np.median(ratios)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _seconds(run: Callable[[], None], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        run()
    return time.process_time() - began


def _compared(channels: int, rows: int, steps: int, run: Callable[[nn.Module, Tensor], None]) -> dict[str, Any]:
    batch = torch.randn(rows, channels)
    old, new = pair(channels, steps)
    _, unsensing = pair(channels, steps, rows=0)
    found: dict[str, Any] = {"new / old": ratio(lambda: run(old, batch), lambda: run(new, batch))}
    found["new without telemetry / old"] = ratio(lambda: run(old, batch), lambda: run(unsensing, batch))
    if steps:
        bare = ratio(lambda: run(old, batch), lambda: run(unsensing, batch), _without_guard)
        found["new without telemetry and guard / old"] = bare
    if steps == RAMP_STEPS:
        exported = esper.export(new)
        found["new, exported / old"] = ratio(lambda: run(old, batch), lambda: run(exported, batch))
    found["old_us"] = round(_seconds(lambda: run(old, batch), 50) / 50 * 1e6)
    return found


def measure() -> dict[str, Any]:
    """All sizes, states and kinds of work, and the differences of outputs along a whole ramp."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    figures = []
    for channels, rows in SIZES:
        for state, steps in STATES.items():
            for what, run in {"forward": _forward, "forward and backward": _forward_backward}.items():
                figure = {"channels": channels, "rows": rows, "state": state, "what": what}
                figures.append(figure | _compared(channels, rows, steps, run))
                print(figures[-1], flush=True)
    for state in ("dormant", "fossil"):  # a graft that is being blended in is trained by a session
        old, new = (_step_of(model, torch.randn(ROWS, WIDTH)) for model in perceptrons(STATES[state]))
        figure = {"channels": WIDTH, "rows": ROWS, "state": state, "what": "training step of three layers with AdamW"}
        figures.append(figure | {"new / old": ratio(old, new), "old_us": round(_seconds(old, 5) / 5 * 1e6)})
        print(figures[-1], flush=True)
    batch = torch.randn(64, 48)
    ramp = [difference(48, steps, batch) for steps in range(RAMP_STEPS + 1)]
    return {"load": os.getloadavg()[0], "differences": {"dormant": ramp[0], "ramp": max(ramp)}, "figures": figures}


def markdown(result: dict[str, Any]) -> str:
    """The figures as the table of ``docs/migrating.md``."""
    kinds = ("new", "new without telemetry", "new without telemetry and guard", "new, exported")
    names = [f"{kind} / old" for kind in kinds]
    lines = [
        "| channels, rows | state | what | old, µs | new / old | without telemetry | and without guard | exported |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for one in result["figures"]:
        ratios = [f"{one[name]['median']:.2f}" if name in one else "-" for name in names]
        cells = (f"{one['channels']}, {one['rows']}", one["state"], one["what"], f"{one['old_us']:,}", *ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
