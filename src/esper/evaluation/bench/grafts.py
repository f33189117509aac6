"""Live grafts that read their chunk, beside other ways to compute the same, and beside the time of their bytes.

All is measured between two operations of a host: the one before gives a new output, the one behind a new gradient, as
where grafts live. What these take by themselves is taken off.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.evaluation.bench.clock import Call, Spread, graphed, in_turns
from esper.evaluation.bench.planted import Planting, grow, planted
from esper.evaluation.bench.section import Goal, Section, as_time, dtype_name
from esper.kasmina.places.place import Place

CHANNELS, ROWS = 4096, 8192
SIZES = {"128 seeds of 32": 128, "32 seeds of 128": 32}
SMALL_CHANNELS, SMALL_ROWS = 256, 64
SMALL_SIZES = {"8 seeds of 32": 8}
SHARES = {"all": 1.0, "a tenth": 0.1}
MOST_FORWARD, MOST_BOTH, LEAST_COMPILED, LEAST_LOOP = 1.3, 1.6, 5.0, 100.0
HOST, COMPILED, IN_PLACE = "host", "torch.compile", "torch.compile, in place"
Way = Callable[[Tensor], Tensor]
SHARES_OF_LINE = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def measure(device: torch.device, is_quick: bool) -> Section:
    """Forward, and forward and backward, of all grafts of a layer and of a tenth of them."""
    is_gpu = device.type == "cuda"
    channels, rows, sizes = (CHANNELS, ROWS, SIZES) if is_gpu else (SMALL_CHANNELS, SMALL_ROWS, SMALL_SIZES)
    dtype = torch.bfloat16 if is_gpu else torch.float32
    repeats, told, goals = 5 if is_quick else 15, [], []
    y = torch.randn(rows, channels, device=device, dtype=dtype)
    for size, seeds in sizes.items():
        for share, part in SHARES.items():
            planting = Planting(channels, seeds, max(1, round(part * seeds)))
            place = planted(planting, device, dtype)
            for what, both in {"forward": False, "forward and backward": True}.items():
                spreads = _times(place, planting, y, both=both, repeats=repeats)
                floor = spreads.pop("copy").middle * passes(planting, both=both) / 2
                ours = spreads["ours"].middle
                cells = {"grafts": f"{size}, {share}", "pass": what, "floor": as_time(floor)}
                cells |= {"ours": as_time(ours), "times the floor": f"{ours / floor:.2f}"}
                cells |= {
                    name: f"{as_time(one.middle)}, {one.middle / ours:.1f} x"
                    for name, one in spreads.items()
                    if name != "ours"
                }
                told.append(cells)
                goals += _goals(f"{size}, {share}, {what}", floor, spreads, both=both) if is_gpu else []
    return Section(f"Live grafts of {channels} channels, {rows} rows, {dtype_name(dtype)}", told, goals)


def measure_shares(device: torch.device, is_quick: bool) -> Section | None:
    """Forward and backward by the share of a layer's seeds that have grafts."""
    if device.type != "cuda":
        return None
    y = torch.randn(ROWS, CHANNELS, device=device, dtype=torch.bfloat16)
    seeds, points, rows = SIZES["128 seeds of 32"], [], []
    for share in SHARES_OF_LINE:
        planting = Planting(CHANNELS, seeds, max(1, round(share * seeds)))
        place = planted(planting, device, y.dtype)
        calls = {way: graphed(call_of(grown, place, y, both=True)) for way, grown in _ours(place).items()}
        spread = added(in_turns(calls, device, 20, 5 if is_quick else 15))["ours"]
        points.append((100 * planting.active / seeds, spread))
        rows.append(
            {"seeds with grafts": f"{planting.active} of {seeds}", "forward and backward": as_time(spread.middle)}
        )
    title = f"Live grafts by their share of {seeds} seeds of 32 channels, {ROWS} rows"
    return Section(title, rows, points={"forward and backward, us": points})


def _ours(place: Place) -> dict[str, Way]:
    return {HOST: lambda y: y, "ours": partial(grow, place)}


def _times(place: Place, planting: Planting, y: Tensor, *, both: bool, repeats: int) -> dict[str, Spread]:
    """Ours, plain PyTorch's and the compiler's from a CUDA graph, where there are such; a loop over seeds; a copy."""
    device, into = y.device, torch.empty_like(y)
    batched = partial(_batched, place)
    ways = _ours(place) | {"batched": batched}
    if device.type == "cuda":
        ways |= {COMPILED: torch.compile(batched), IN_PLACE: torch.compile(partial(batched, in_place=True))}
    calls: dict[str, Call] = {name: call_of(way, place, y, both=both) for name, way in ways.items()}
    slow = {HOST: calls[HOST], "loop": call_of(partial(_by_loop, planting, place), place, y, both=both)}
    calls["copy"] = lambda: into.copy_(y)
    if device.type == "cuda":
        calls = {name: graphed(call) for name, call in calls.items()}
    times = in_turns(calls, device, 20, repeats)
    copies = Spread.of(times.pop("copy"))
    return {"copy": copies} | added(times) | added(in_turns(slow, device, 1, max(3, repeats // 3)))


def added(times: dict[str, list[float]]) -> dict[str, Spread]:
    """What each way adds to the host's operations."""
    host = times.pop(HOST)
    return {name: Spread.of([one - other for one, other in zip(of, host, strict=True)]) for name, of in times.items()}


def call_of(way: Way, place: Place, y: Tensor, *, both: bool) -> Call:
    """A forward pass of a way to compute a place's grafts, or a forward and a backward pass, between two of a host's
    operations; without the gradients of grafts where the way has none."""
    if not both:
        return torch.no_grad()(lambda: way(y.clone()))
    leaf, gradient = y.clone().requires_grad_(), torch.randn_like(y)
    learned = (leaf, place.arena.slots)
    return lambda: torch.autograd.grad(way(leaf.clone()).neg(), learned, gradient, allow_unused=True)


def _named(place: Place) -> dict[str, Tensor]:
    (group,) = place.arena.groups
    graft = place.arena.live[0]
    named: dict[str, Tensor] = graft.unflatten(place.arena.slots_SN()[group.slots])  # type: ignore[index]
    return named


def _batched(place: Place, y: Tensor, *, in_place: bool = False) -> Tensor:
    """The same maths as batched products, without a guard."""
    (group,) = place.arena.groups
    index, named = group.channels, _named(place)
    x_GMK = y[:, index].movedim(1, 0)  # type: ignore[index]
    hidden = F.gelu(torch.baddbmm(named["b1"].unsqueeze(1), x_GMK, named["w1"].transpose(1, 2)))
    delta = torch.baddbmm(named["b2"].unsqueeze(1), hidden, named["w2"].transpose(1, 2))
    alpha_G = place.state.alpha[group.seeds].to(y.dtype)  # type: ignore[index]
    grown = (x_GMK + alpha_G.view(-1, 1, 1) * delta).movedim(0, 1).flatten(1)
    write = y.index_copy_ if in_place else y.index_copy
    return write(1, index.flatten(), grown)  # type: ignore[operator]


def _by_loop(planting: Planting, place: Place, y: Tensor) -> Tensor:
    """The same maths, one graft after the other."""
    named, width, parts, end = _named(place), planting.channels // planting.seeds, [], 0
    for number, seed in enumerate(planting.grown):
        between, x = y[:, end : seed * width], y[:, seed * width : (seed + 1) * width]
        hidden = F.gelu(F.linear(x, named["w1"][number], named["b1"][number]))
        parts += [between, x + 0.5 * F.linear(hidden, named["w2"][number], named["b2"][number])]
        end = (seed + 1) * width
    return torch.cat((*parts, y[:, end:]), 1)


def passes(planting: Planting, *, both: bool) -> float:
    """How often a new output goes over the bus: read and written forward; backward its gradient is read and written,
    and what grafts have read is read again."""
    return 4 + planting.active / planting.seeds if both else 2


def _goals(where: str, floor: float, spreads: dict[str, Spread], *, both: bool) -> list[Goal]:
    ours, most = spreads["ours"].middle, MOST_BOTH if both else MOST_FORWARD
    goals = [Goal(f"{where}: at most {most:g} times the floor", f"{ours / floor:.2f}", ours <= most * floor)]
    others = {"torch.compile": (LEAST_COMPILED, (COMPILED, IN_PLACE)), "a loop": (LEAST_LOOP, ("loop",))}
    for name, (least, ways) in others.items():
        times = min(spreads[way].middle for way in ways) / ours
        goals.append(Goal(f"{where}: at least {least:g} times as fast as {name}", f"{times:.1f}", times >= least))
    return goals
