"""Whether kernels give what plain PyTorch gives: fresh random numbers, all dtypes, odd sizes, spoilt outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from esper.evaluation.bench.planted import Planting, planted
from esper.evaluation.bench.section import Goal, Section, dtype_name
from esper.evaluation.bench.sweeps import FAMILIES, READING
from esper.kasmina.grafts.group import Group
from esper.kasmina.kernels.adamw import ops as adamw
from esper.kasmina.kernels.adamw import reference as plain_adamw
from esper.kasmina.kernels.adamw.reference import Rows
from esper.kasmina.kernels.telemetry import reference as plain_telemetry
from esper.kasmina.kernels.telemetry.ops import kernel_for
from esper.kasmina.places.place import Place

MOST = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 6e-3}
"""Error, as a share of the largest number of an output."""

SHAPES: tuple[tuple[int, ...], ...] = ((1,), (130,), (3, 65), (2, 5, 9), (4097,))
SIZES = ((1, 12, 12), (5, 45, 9), (32, 128, 4), (128, 384, 3))
"""Channels of a graft, of the layer, and seeds."""


def measure(device: torch.device, is_quick: bool) -> Section | None:
    """Worst errors of all kernels; on a GPU."""
    if device.type != "cuda":
        return None
    torch.seed()
    rows, is_met = [], True
    for dtype, most in MOST.items():
        kinds = {name: (name, settings) for name, settings in FAMILIES.items()}
        kinds |= {name: (name.split()[0], settings) for name, settings in READING.items()}
        found = {f"grafts, {name}": _grafts(device, dtype, *kind, is_quick) for name, kind in kinds.items()}
        found |= {"telemetry": _telemetry(device, dtype), "adamw": _adamw(device, dtype)}
        for name, errors in found.items():
            is_met &= max(errors) <= most
            rows.append(
                {
                    "kernel": name,
                    "dtype": dtype_name(dtype),
                    "outputs and gradients": str(len(errors)),
                    "worst error": f"{max(errors):.1e}",
                    "allowed": f"{most:.0e}",
                }
            )
    goal = Goal("kernels give what plain PyTorch gives in float64, or float32", "yes" if is_met else "no", is_met)
    return Section("Kernels beside plain PyTorch", rows, [goal])


def _grafts(
    device: torch.device, dtype: torch.dtype, family: str, settings: Mapping[str, Any], is_quick: bool
) -> list[float]:
    errors = []
    for width, channels, seeds in SIZES[:3] if is_quick else SIZES:
        planting = Planting(channels, seeds, max(1, seeds - 2), family, settings)
        place = planted(planting, device, dtype)
        with torch.no_grad():
            place.arena.slots.normal_(0, 0.5 * width**-0.5)
        for leading in SHAPES[:2] if is_quick else SHAPES:
            for is_first in (False, True) if len(leading) > 1 else (False,):
                errors += errors_of(place, leading, is_first=is_first)
    return errors


def errors_of(place: Place, leading: tuple[int, ...], *, is_first: bool) -> list[float]:
    """Of output and gradients of all grafts of a place, whose leading axes are given.

    Args:
        place: with one group of grafts.
        leading: axes before the channels.
        is_first: whether the channels lie before the positions.
    """
    slots, (group,) = place.arena.slots, place.arena.groups
    assert isinstance(group, Group)
    y = torch.randn(*leading, place.ports.outputs, device=slots.device, dtype=slots.dtype)
    gradient = torch.randn_like(y)
    if is_first:  # channels before the positions
        y, gradient = (one.movedim(-1, 1).contiguous().movedim(1, -1) for one in (y, gradient))
    x = torch.randn(*leading, place.ports.inputs, device=slots.device, dtype=slots.dtype)
    torch.full_like(y, float("nan"))  # what the allocator hands out next is spoilt

    def passed(dtype: torch.dtype) -> list[Tensor]:
        leaves = [one.detach().to(dtype).clone().requires_grad_() for one in (y, x, place.arena.slots_SN())]
        x_is_finite = torch.ones(1, dtype=torch.bool, device=x.device)
        out = group.add_to(
            leaves[0], leaves[1], leaves[2], place.state, place.site.geometry, x_is_finite, raises_faults=True
        )
        grads = torch.autograd.grad(out, leaves, gradient.to(dtype), allow_unused=True)
        return [out.detach(), *(grad for grad in grads if grad is not None)]

    ours, plain = passed(slots.dtype), passed(torch.float64)
    assert not place.state.fault.any()
    return [_error(one, other) for one, other in zip(ours, plain, strict=True)]


def _telemetry(device: torch.device, dtype: torch.dtype) -> list[float]:
    errors = []
    for leading in SHAPES:
        for channels in (1, 5, 130, 5030):
            y = torch.randn(*leading, channels, device=device).to(dtype)
            found = []
            for module in (kernel_for(y), plain_telemetry):
                sums, pivot = torch.zeros(4 * channels, device=device), torch.zeros(channels, device=device)
                squares, steps = torch.zeros(channels, device=device), torch.zeros(4, device=device)
                turn = torch.zeros(2, dtype=torch.int64, device=device)
                module.look(y, -1, 64, 0.0, sums, pivot, turn)
                module.feel(y, -1, 64, squares, steps, turn)
                found.append((pivot, sums[channels : 3 * channels], sums[3 * channels :], squares, steps))
            errors += [_error(one, other) for one, other in zip(*found, strict=True)]
    return errors


def _adamw(device: torch.device, dtype: torch.dtype) -> list[float]:
    errors = []
    for slots, size in ((1, 1), (3, 7), (130, 1030)):
        start = [torch.randn(slots, size, device=device).to(dtype), *torch.zeros(2, slots, size, device=device)]
        both = [[one.clone() for one in (*start, torch.zeros(slots, device=device))] for _ in range(2)]
        for _ in range(3):
            grad, moves = torch.randn(slots, size, device=device), torch.rand(slots, device=device) < 0.7
            for (params, exp_avg, exp_avg_sq, updates), way in zip(both, (adamw, plain_adamw), strict=True):
                rows = Rows(params, grad.to(dtype), exp_avg, exp_avg_sq, updates, moves)
                way.step_adamw([rows], 1e-2, 0.01)
        errors += [_error(one, other) for one, other in zip(*both, strict=True)]
    return errors


def _error(found: Tensor, expected: Tensor) -> float:
    if not found.isfinite().all():
        return float("inf")
    scale = expected.double().abs().max().clamp(min=1e-6)
    return float((found.double() - expected.double()).abs().max() / scale)
