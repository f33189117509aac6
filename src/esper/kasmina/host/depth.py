"""Which blocks of a host can be followed by a copy of themselves that gives what it reads.

It is tried, block by block, on what the block gave for an example. With all of its parameters zero a block that adds to
a stream passes it on, whatever else it does; then each parameter gets random values again, in the order in which the
block uses them, and keeps them if the stream still passes. Those that must be zero are the last of each branch: the
layers that write into the stream, or the norms behind them. Where the stream does not pass to the bit (a norm behind
the sum, a stride, another width), a block has no copy.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.contracts.reports import BlockCopy
from esper.kasmina.flops import FlopCounter
from esper.kasmina.host.caches import has_cache
from esper.kasmina.host.colonies import starred
from esper.kasmina.host.comparing import FAULTS
from esper.kasmina.host.copies import called, replica
from esper.kasmina.host.measuring import call, looking
from esper.kasmina.outputs import first_tensor
from esper.kasmina.places.site import Site


class Call(NamedTuple):
    """A call of a block, and what it gave."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


def block_copies(model: nn.Module, found: Iterable[Site], example: Any) -> dict[str, BlockCopy]:
    """What copies of a bare model's blocks are made of, by the blocks' names; without those that have none, or stand
    alone.

    Blocks of models that decode with a cache have none: copies would keep nothing in it. No random state changes.

    Args:
        model: the host.
        found: where its places lie.
        example: an input of the model.
    """
    blocks = [site for site in found if site.kind == "block" and site.form == ("tensor",) and site.uncached is None]
    kinds = Counter(starred(site.layer_id) for site in blocks)
    channels = {site.layer_id: site.ports.outputs for site in blocks if kinds[starred(site.layer_id)] > 1}
    if not channels:
        return {}
    with looking(model):
        return _block_copies(model, channels, example)


def _block_copies(model: nn.Module, channels: Mapping[str, int], example: Any) -> dict[str, BlockCopy]:
    blocks = {name: model.get_submodule(name) for name in channels}
    calls: dict[str, Call] = {}
    undo = []
    for name, block in blocks.items():

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls.setdefault(name, Call(args, kwargs, output.clone() if isinstance(output, Tensor) else output))

        undo.append(block.register_forward_hook(note, with_kwargs=True))
    try:
        call(model, example)
    finally:
        for one in undo:
            one.remove()
    found: dict[str, BlockCopy] = {}
    zeroed: dict[object, tuple[str, ...]] = {}  # of blocks of one kind
    for name, made in calls.items():
        block = blocks[name]
        if _may_copy(block, made):
            kind = type(block), *((key, tuple(one.shape)) for key, one in block.named_parameters())
            try:
                copy = _Trial(block, made, channels[name]).copy(zeroed.get(kind))
            except FAULTS:
                continue
            if copy is not None:
                found[name], zeroed[kind] = copy, tuple(copy.zeroed)
    return found


def _may_copy(block: nn.Module, call: Call) -> bool:
    """Whether a block gives a stream of the shape that it reads, by weights that are all it depends on."""
    x, y = first_tensor(block, call.args, call.kwargs), call.output
    if not isinstance(y, Tensor) or x is None or y.is_nested or x.is_nested:
        return False
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in block.modules()]
    parameters = [*block.parameters()]
    return bool(
        (x.shape, x.dtype) == (y.shape, y.dtype)
        and y.is_floating_point()
        and not torch.equal(y, y.flatten()[:1].expand_as(y))  # which passes through much
        and not has_cache(call.kwargs)
        and not any(hooks)  # of torch.nn.utils.weight_norm, and such
        and parameters
        and all(one.is_floating_point() for one in parameters)
    )


class _Trial:
    """Copies of one block that are tried.

    Args:
        block: the block.
        call: a call of it.
        channels: that it writes.
    """

    def __init__(self, block: nn.Module, call: Call, channels: int) -> None:
        self._block, self._call, self._rows = block, call, max(1, call.output.numel() // channels)
        self._params = dict(block.named_parameters())
        generator = torch.Generator().manual_seed(0)
        self._random = {name: _drawn(tensor, generator) for name, tensor in self._params.items()}

    def copy(self, zeroed: tuple[str, ...] | None) -> BlockCopy | None:
        """What a copy is made of; None if there is none.

        Args:
            zeroed: names of the parameters that are zero in copies of other blocks of the kind; None finds them.
        """
        used = self._used()
        if used is None:
            return None
        order, multiply_adds = used
        if zeroed is None:
            zeroed = self._zeroed(order)
        if not zeroed or not all(self._passes({*zeroed}, training=mode) for mode in (False, True)):
            return None
        norms = [(name, module.num_features) for name, module in _counting(self._block)]
        shapes = [(name, tuple(one.shape)) for name, one in self._params.items()]
        return BlockCopy(shapes, zeroed, norms, multiply_adds)

    def _used(self) -> tuple[list[str], int] | None:
        """The parameters in the order of their use, and multiply-adds for each row; None if a copy would not learn, or
        do more than to compute."""
        params = {name: one.detach().clone().requires_grad_() for name, one in self._params.items()}
        buffers = _buffers(self._block)
        made, ends = replica(self._block, params | buffers).train(), dict[str, int]()
        for name, module in made.named_modules():
            module.register_forward_hook(partial(_note_end, ends, name))
        x = self._call.output.clone()
        with torch.enable_grad(), FlopCounter() as counter:
            y = called(made, self._call.args, self._call.kwargs, x)
        with torch.enable_grad():
            gradients = torch.autograd.grad(y.float().sum(), [*params.values()], allow_unused=True)
        counted = {f"{name}." for name, _ in _counting(self._block)}
        moved = [name for name, one in made.named_buffers() if not torch.equal(one, self._block.get_buffer(name))]
        is_pure = x._version == 0 and all(name.startswith(tuple(counted)) for name in moved)
        if not is_pure or any(one is None for one in gradients):
            return None

        def end(name: str) -> int:
            owner = name.rpartition(".")[0]
            while owner not in ends and owner:
                owner = owner.rpartition(".")[0]
            return ends.get(owner, len(ends))

        return sorted(params, key=end), counter.flops // 2 // self._rows

    def _zeroed(self, order: list[str]) -> tuple[str, ...]:
        """The parameters that must be zero; none if no zeros are enough."""
        zeroed = set(order)
        if not self._passes(zeroed):
            return ()
        for name in order:
            if self._passes(zeroed - {name}):
                zeroed.discard(name)
        return tuple(name for name in self._params if name in zeroed)

    def _passes(self, zeroed: set[str], *, training: bool = False) -> bool:
        """Whether a copy gives what it reads, whatever its other parameters are."""
        tensors = {name: torch.zeros_like(one) if name in zeroed else one for name, one in self._random.items()}
        made = replica(self._block, tensors | _buffers(self._block)).train(training)
        y = called(made, self._call.args, self._call.kwargs, self._call.output.clone())
        return torch.equal(y, self._call.output)


def _note_end(ends: dict[str, int], name: str, *_: Any) -> None:
    ends.setdefault(name, len(ends))


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(max(1, math.prod(like.shape[1:])))
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator).to(like)


def _buffers(block: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in block.named_buffers()}


def _counting(block: nn.Module) -> list[tuple[str, Any]]:
    """Batch norms that keep running statistics."""
    norms = [(name, one) for name, one in block.named_modules() if isinstance(one, _BatchNorm)]
    return [(name, one) for name, one in norms if one.running_mean is not None]
