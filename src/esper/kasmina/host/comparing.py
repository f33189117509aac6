"""Whether two models compute the same on an example."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, EsperError
from esper.kasmina.host.measuring import call

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative RMS error up to which outputs are the same. Grafts of one shape are computed together in a wrapped model and
one by one in an export, which rounds differently; a deep host multiplies that."""

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EsperError)
"""What the caller's code may raise where something that has grown does not fit into it."""


def run(model: nn.Module, example: Any) -> list[Tensor]:
    """All tensors of the output in eval mode; modes and random streams stay as they are."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            model.eval()
            return [tensor.clone() for tensor in _tensors(call(model, example))]
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_same(wanted: list[Tensor], got: list[Tensor]) -> None:
    """Compare what :func:`run` gave for a wrapped model and its export.

    Raises:
        ConfigError: if they differ by more than rounding.
    """
    gap = gap_between(wanted, got)
    if gap:
        raise ConfigError(
            f"The export computes something else on the example: outputs differ by {gap:.2g} of their size. The model "
            "goes round the calls of its modules, where grafts act; esper.export(model, check=False) gives the copy as "
            "it is."
        )


def gap_between(wanted: list[Tensor], got: list[Tensor]) -> float:
    """Relative RMS error between what :func:`run` gave for two models; 0 within the tolerance."""
    return max((_gap(one, other) for one, other in zip(wanted, got, strict=True)), default=0.0)


def told(error: Exception) -> str:
    """An error of the caller's code, in a line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'without a word')}"


def _gap(wanted: Tensor, got: Tensor) -> float:
    """Relative RMS error, 0 within the tolerance."""
    if wanted.shape != got.shape:
        return float("inf")
    tolerance = TOLERANCE.get(wanted.dtype, 1e-4)
    a, b = (torch.nan_to_num(tensor.double()) for tensor in (wanted, got))
    gap = float((a - b).norm() / a.norm().clamp(min=1e-12))
    return gap if gap > tolerance else 0.0


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
        return
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping | type):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    for item in output if isinstance(output, list | tuple) else ():
        yield from _tensors(item)
