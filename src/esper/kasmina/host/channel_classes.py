"""Which channels of a model belong together: those that its code adds up, or multiplies, one by one.

A class of channels is written by some layers and read by others; to make it wider, all of them must become wider. The
classes are found by running the model once, with one more channel beside what every known layer writes
(:mod:`carried`): where two of them meet, they are of one class; where one gets lost, its class cannot be widened.

This is the dependency graph of structured pruning (Fang et al., "DepGraph: towards any structural pruning", CVPR 2023),
read the other way round.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from esper.kasmina.channels.carried import Beside, Carried, Channels, New, carried_by, carry, listeners, plain
from esper.kasmina.channels.library_layers import is_norm, is_transposed_linear
from esper.kasmina.host.edges import is_opaque
from esper.kasmina.outputs import first_tensor, first_tensor_at

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass
class ChannelClass:
    """Channels that belong together.

    Attributes:
        width: how many there are.
        writers: names of the layers that write them.
        readers: names of the layers that read them, and what each reads of one channel: 1, or positions that were
            flattened.
        between: of the readers, those that read all channels of one position after those of another, and of how many
            positions.
        norms: names of the layers that treat every channel by itself, or normalise over them.
        tables: names of parameters and buffers that are added to them (or multiplied with them) directly, the axis of
            the channels counted from the back, and whether it is a sum.
        fault: why they cannot be widened; None if they can.
    """

    width: int
    writers: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    between: dict[str, int] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    tables: dict[str, tuple[int, bool]] = field(default_factory=dict)
    fault: str | None = None

    @property
    def modules(self) -> list[str]:
        """All layers that must become wider with them."""
        return [*self.writers, *self.norms, *self.readers]


def writes_channels(module: nn.Module) -> bool:
    """Whether a layer is one whose output channels can be told from its weight."""
    if not _has_plain_weight(module):
        return False
    if isinstance(module, CONVOLUTIONS):
        return _is_of(module, CONVOLUTIONS) and module.groups == 1
    return (
        _is_of(module, (nn.Linear,))
        or is_transposed_linear(module)
        or (isinstance(module, nn.Embedding) and _is_of(module, (nn.Embedding,)) and module.max_norm is None)
    )


def keeps_channels(module: nn.Module) -> bool:
    """Whether a layer treats every channel by itself, or normalises over them."""
    if isinstance(module, CONVOLUTIONS):
        is_depthwise = module.groups == module.in_channels == module.out_channels > 1
        is_plain = _has_plain_weight(module) and _is_of(module, CONVOLUTIONS)
        return is_depthwise and is_plain and module.padding_mode == "zeros"
    if parametrize.is_parametrized(module):
        return False
    if not _is_of(module, NORMS):
        return is_norm(module)
    return not isinstance(module, nn.LayerNorm | nn.RMSNorm) or len(module.normalized_shape) == 1


def _is_of(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether it computes as one of torch's own classes."""
    return type(module).forward in [kind.forward for kind in kinds]


def _has_plain_weight(module: nn.Module) -> bool:
    """Whether its weight is a parameter, and not computed from others (``weight_norm``, ``prune``)."""
    return module._parameters.get("weight") is not None and not parametrize.is_parametrized(module)


def channel_classes(model: nn.Module, run: Any) -> list[ChannelClass]:
    """The classes of a model's channels.

    Args:
        model: the model, as it is run.
        run: runs it once on an example, in eval mode and without gradients, and gives its output.
    """
    finding = _Finding(model)
    with finding.listening():
        output = run()
    for one in _carried_in(output):
        finding.lose(one.beside, "the model's output")
    return finding.classes()


class _Finding:
    """Hears what becomes of the channels that every layer writes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            self._names.setdefault(module, name)
        self._layers = list(_layers(model))
        self._numbers = {module: number for number, module in enumerate(self._layers)}
        self._within: list[Beside] = []  # beside what the layers under way have read
        self._parent: dict[int, int] = {}
        self._found: dict[int, ChannelClass] = {}
        self._is_plainly_read: set[str] = set()
        tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._tables = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in tensors}

    def listening(self) -> ExitStack:
        """While it lasts, layers add a channel to what they write."""
        undo = ExitStack()
        for number, module in enumerate(self._layers):
            if writes_channels(module):
                self._parent[number], self._found[number] = number, ChannelClass(0)
            undo.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(self._leave).remove)
        listeners.append(self)
        undo.callback(listeners.remove, self)
        return undo

    def meet(self, ours: Beside, theirs: Beside) -> None:
        first, *others = [self._root(key.group) for key in (*ours, *theirs)]
        for other in others:
            self._parent[self._root(other)] = self._root(first)

    def meet_plain(self, ours: Beside, other: Tensor, *, is_sum: bool) -> None:
        table = self._tables.get(other.untyped_storage().data_ptr())
        for key, (_, axis, _) in ours.items():
            one = self._found[key.group]
            if table is None:
                kind = "added to" if is_sum else "multiplied with"
                one.fault = one.fault or f"they are {kind} something that no layer writes"
            else:
                one.tables[table[0]] = (axis - max(axis + 1, other.dim()), is_sum)

    def lose(self, beside: Beside, operation: str) -> None:
        for key in beside:
            one = self._found[key.group]
            one.fault = one.fault or f"they go into {operation}"

    def classes(self) -> list[ChannelClass]:
        """What was found, in the order of the layers that write."""
        whole: dict[int, ChannelClass] = {}
        for number, part in self._found.items():
            if not part.writers:
                continue
            one = whole.setdefault(self._root(number), ChannelClass(part.width))
            one.fault = one.fault or part.fault
            if one.width != part.width:
                one.fault = one.fault or "layers of other widths write them"
            one.writers += part.writers
            one.norms += [name for name in part.norms if name not in one.norms]
            one.tables |= part.tables
            one.between |= part.between
            for name, times in part.readers.items():
                if one.readers.setdefault(name, times) != times:
                    one.fault = one.fault or f"{name!r} reads them in two ways"
        for one in whole.values():
            both = self._is_plainly_read & {*one.readers, *one.norms}
            if both:
                one.fault = one.fault or f"{min(both)!r} also reads something else"
            if not one.readers:
                one.fault = one.fault or "no layer reads them"
        self._refuse_shared(whole.values())
        return list(whole.values())

    def _refuse_shared(self, classes: Any) -> None:
        """A layer that reads, or writes, two classes cannot become wider for both."""
        for side in ("readers", "norms"):
            seen: dict[str, ChannelClass] = {}
            for one in classes:
                for name in getattr(one, side):
                    other = seen.setdefault(name, one)
                    if other is not one:
                        one.fault = other.fault = f"{name!r} reads others too"

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            index = self._parent[index]
        return index

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        x, where = first_tensor(module, args, kwargs), first_tensor_at(module, args, kwargs)
        name = self._names[module]
        beside = carried_by(x)
        self._within.append(beside)
        if x is not None and not beside and not isinstance(module, nn.Embedding):
            self._is_plainly_read.add(name)
        for key, (new, axis, positions) in beside.items():
            assert x is not None
            one = self._found[key.group]
            wanted = 1 if isinstance(module, (*CONVOLUTIONS, _BatchNorm, nn.GroupNorm)) else x.dim() - 1
            if axis != wanted:
                one.fault = one.fault or f"{name!r} reads them at another axis"
            elif writes_channels(module):
                one.readers[name] = new.shape[axis]
                if positions > 1:
                    one.between[name] = positions
            elif positions > 1:
                one.fault = one.fault or f"{name!r} reads them between positions"
            elif name not in one.norms:
                one.norms.append(name)
        if not beside:
            return args, kwargs
        if isinstance(where, str):
            return args, {**kwargs, where: plain(x)}
        assert where is not None
        return (*args[:where], plain(x), *args[where + 1 :]), kwargs

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        beside = self._within.pop()
        if not isinstance(output, Tensor) or output.is_nested:
            return output
        if not writes_channels(module):
            return carry(output, beside)
        number, name = self._numbers[module], self._names[module]
        axis = 1 if isinstance(module, CONVOLUTIONS) else output.dim() - 1
        one = self._found[number]
        one.width = output.shape[axis]
        if name not in one.writers:
            one.writers.append(name)
        return carry(output, {Channels("", 0, number): New(output.narrow(axis, 0, 1), axis)})


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Those that write or keep channels; each once, and none within what Esper hosts as a whole."""
    inside = {part for module in model.modules() if is_opaque(module) for part in module.modules()}
    for module in model.modules():
        if module not in inside and (writes_channels(module) or keeps_channels(module)):
            yield module


def _carried_in(output: Any) -> list[Carried]:
    if isinstance(output, Carried):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [one for item in output for one in _carried_in(item)] if isinstance(output, list | tuple) else []
