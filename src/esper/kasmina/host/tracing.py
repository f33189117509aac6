"""What a forward pass shows: shapes at every place, how often it was called, which activation follows it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.overrides import TorchFunctionMode

from esper.kasmina.flops import FlopCounter
from esper.kasmina.host.caches import has_cache
from esper.kasmina.outputs import Form, first_tensor, first_tensor_at, form_of, holds_scalar, written_tensor

PASSES_NOTHING_BELOW: dict[str, float] = {
    "relu": 0.0,
    "relu_": 0.0,
    "gelu": -3.0,
    "silu": -3.0,
    "silu_": -3.0,
    "mish": -3.0,
}
"""By an activation's name: the value at or below which (nearly) nothing passes."""


@dataclass(frozen=True)
class Seen:
    """One tensor that a place got or gave: in which argument, or in what form of output; and whether a scalar stood
    beside it."""

    shape: Size
    is_float: bool
    form: Form = ("tensor",)
    has_loss: bool = False
    argument: int | str = 0


@dataclass
class Trace:
    """What was seen.

    Attributes:
        inputs: of every place, in its first call; None where it got no tensor.
        outputs: likewise.
        calls: how often each place wrote its output.
        rows: vectors of channels at which grafts work, over all calls: those that a place wrote, or read.
        thresholds: value at or below which the activation behind a place passes nothing.
        multiply_adds: of the model's forward passes.
        has_cache: whether the model gave back a cache to go on from, or any place got one.
        walked: spans whose steps were called one by one, and not by their container.

    What a backward pass runs again, to save memory, is counted only once: calls, rows and multiply-adds are of forward
    passes.
    """

    inputs: dict[str, Seen | None] = field(default_factory=dict)
    outputs: dict[str, Seen | None] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    multiply_adds: int = 0
    has_cache: bool = False
    walked: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class TracedPlace:
    """A place to watch.

    Args:
        layer_id: its name.
        first: module whose input it reads.
        last: module whose output it writes.
        field: of the output, see :mod:`esper.kasmina.outputs`.
        outputs: its channels, if known.
        inputs: its features, where grafts work at the positions of the input; else 0.
        around: the container of a span.
    """

    layer_id: str
    first: nn.Module
    last: nn.Module
    field: str | None = None
    outputs: int | None = None
    inputs: int = 0
    around: nn.Module | None = None


@contextmanager
def watching(model: nn.Module, watched: Sequence[TracedPlace]) -> Iterator[Trace]:
    """Record what happens at places while forward passes of ``model`` run inside."""
    trace, followers = Trace(), _Followers()
    entered: set[str] = set()
    with ExitStack() as undo:
        for one in watched:
            trace.calls[one.layer_id] = trace.rows[one.layer_id] = 0
            enter, leave = _hooks(one, trace, followers)
            undo.callback(one.first.register_forward_pre_hook(enter, with_kwargs=True).remove)
            undo.callback(one.last.register_forward_hook(leave).remove)
            if one.around is not None:
                undo.callback(one.around.register_forward_pre_hook(partial(_note_call, entered, one.layer_id)).remove)
        counter = undo.enter_context(FlopCounter())
        before: list[int] = []

        def begin(*_: Any) -> None:
            before.append(counter.flops)

        def add(_: nn.Module, __: Any, output: Any) -> None:
            flops = counter.flops - before.pop()
            trace.multiply_adds += 0 if _in_backward() else flops // 2
            trace.has_cache |= has_cache(output)

        undo.callback(model.register_forward_pre_hook(begin).remove)
        undo.callback(model.register_forward_hook(add).remove)
        undo.enter_context(followers)
        yield trace
        trace.walked = {one.layer_id for one in watched if one.around is not None} - entered
    trace.thresholds = followers.thresholds


def _note_call(entered: set[str], layer_id: str, *_: Any) -> None:
    entered.add(layer_id)


class _Followers(TorchFunctionMode):
    """Notices when a place's output goes straight into an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, list[str]]] = {}  # the tensor is kept, so that its id stays its own
        self.thresholds: dict[str, float] = {}

    def note(self, y: Tensor, layer_id: str) -> None:
        self.outputs.setdefault(id(y), (y, []))[1].append(layer_id)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        threshold = PASSES_NOTHING_BELOW.get(getattr(func, "__name__", ""))
        if threshold is not None and args and id(args[0]) in self.outputs:
            for layer_id in self.outputs[id(args[0])][1]:
                self.thresholds[layer_id] = threshold
        return func(*args, **(kwargs or {}))


def _hooks(one: TracedPlace, trace: Trace, followers: _Followers) -> tuple[Callable[..., None], Callable[..., None]]:
    read = [0]  # rows of the input of the call under way

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if _in_backward():
            return
        trace.has_cache |= has_cache(kwargs)
        x = first_tensor(module, args, kwargs)
        where = first_tensor_at(module, args, kwargs) or 0
        seen = None if x is None else Seen(x.shape, x.is_floating_point(), argument=where)
        trace.inputs.setdefault(one.layer_id, seen)
        if one.inputs and x is not None:
            read[0] = x.numel() // one.inputs
            trace.rows[one.layer_id] += read[0]

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        if _in_backward():
            return
        y, seen = written_tensor(output, one.field), None
        if y is not None:
            seen = Seen(y.shape, y.is_floating_point(), form_of(output, one.field), holds_scalar(output))
        trace.outputs.setdefault(one.layer_id, seen)
        trace.calls[one.layer_id] += 1
        if y is not None:
            followers.note(y, one.layer_id)
        if y is not None:  # a graft that reads its own chunk works at the output's positions: the more of both count
            written = y.numel() // max(1, one.outputs or y.shape[-1]) if y.dim() else 0
            trace.rows[one.layer_id] += max(0, written - read[0]) if one.inputs else written
            read[0] = 0

    return enter, leave


def _in_backward() -> bool:
    """Whether a backward pass is under way: what runs now is a forward pass that is made again (checkpointing)."""
    return torch._C._current_graph_task_id() != -1
