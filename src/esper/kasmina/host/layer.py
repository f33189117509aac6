"""A host layer with its seeds: the class that a module is swapped to, and what hangs below it.

``module.__class__ = Kasmina<Base>``: attributes, ties, isinstance checks and state-dict keys of the host survive. All
state is in one child, ``_esper``, an :class:`Anchor`; it holds one :class:`Place` for every set of seeds that writes
this module's output.
"""

import inspect
from collections import OrderedDict
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Piece
from esper.kasmina.channels.carried import Beside, carried_by, carry, plain
from esper.kasmina.grafts.activity import Activity
from esper.kasmina.host.caches import refuse_continuation
from esper.kasmina.host.copies import ESPER, again
from esper.kasmina.host.edges import is_adapted
from esper.kasmina.outputs import first_tensor, with_tensor, written_tensor
from esper.kasmina.places.place import Place
from esper.kasmina.seeds.looks import LOOKS

SAVING = (
    "The model has grown, and save_pretrained would lose what grew. Call "
    "esper.integrations.transformers.save_pretrained(model, directory)."
)
MERGING = (
    "A layer with adapters has grown, and merging or unloading them would lose what grew. Merge before esper.wrap, or "
    "keep the adapters."
)

WRITES_NEW = frozenset((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
"""Classes whose output is a new tensor that their backward pass does not need: grafts may be written into it."""

if TYPE_CHECKING:
    _Host = nn.Module
else:
    _Host = object


class Anchor(nn.Module):
    """All that Esper keeps below one host module.

    Attributes:
        places: places that write this module's output, by a key that is unique in the module.
        feeds: places whose span starts here; each is a child of the module where its span ends.
        activity: whether any of both has grafts, or seeds that train in isolation.
        senses: whether the seeds look at activations in training.
        config: the configuration of the whole model; only the root's anchor has it, and the example.
        example: the input that the model was wrapped with; it goes where the model goes, and is not copied with it.
        layout: what the whole model was when it was wrapped (``wrapping.layout``); only the root's anchor has it.
        kin: all anchors of the model.
        colonies: places that lie at several modules; only the root's anchor holds them.
        limbs: where colonies meet this module.
        not_offered: why colonies that one might expect are not offered, by name; only the root's anchor has it.
    """

    config: GrowthConfig | None = None
    example: Any = None
    layout: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    not_offered: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.ModuleDict()
        self.feeds: list[Place] = []
        self.colonies = nn.ModuleDict()
        self.limbs: list[tuple[Place, Piece]] = []
        self.activity = Activity(self)
        self.senses = False
        self.kin: list[Anchor] = [self]
        self._writes_all = False
        self.register_state_dict_post_hook(_leave_out_dormant)
        self.register_load_state_dict_pre_hook(_fill_absent_keys)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "example"}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.example = tree_map_only(Tensor, fn, self.example)
        return super()._apply(fn, recurse)

    def hold(self, key: str, place: Place) -> None:
        """Take a place that writes this module's output."""
        self.places[key] = place
        self.senses = place.config.telemetry_rows > 0
        place.arena.activities.append(self.activity)

    def feed(self, place: Place) -> None:
        """Note a place whose span starts here."""
        self.feeds.append(place)
        place.arena.activities.append(self.activity)

    def found(self, place: Place) -> None:
        """Take a colony of the model."""
        self.colonies[f"colony_{len(self.colonies)}"] = place
        place.arena.activities.append(self.activity)

    def join(self, place: Place, piece: Piece) -> None:
        """Note that a colony meets this module."""
        self.limbs.append((place, piece))
        place.arena.activities.append(self.activity)

    def begin_pass(self) -> None:
        """A forward pass of this module begins."""
        for place in self.founded():
            if place.is_growing:
                place.passes.begin()

    def end_pass(self) -> None:
        """It is over."""
        for place in self.founded():
            place.passes.end()

    def founded(self) -> Iterator[Place]:
        """The colonies that it holds."""
        for place in self.colonies.values():
            assert isinstance(place, Place)
            yield place

    def reach(
        self, module: nn.Module, output: Any, x: Tensor | None, beside: Beside, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """A module's output with all that colonies change of it, and new channels beside it.

        Args:
            module: the module.
            output: its output.
            x: what it reads of the host's channels.
            beside: new channels that came with that.
            args: with which it was called.
            kwargs: likewise.
        """
        busy = [(place, piece) for place, piece in self.limbs if place.is_growing]
        if not busy:
            return output
        new, y = dict(carried_by(output)), plain(output)
        for place, piece in busy:
            if piece.role == "copy":
                y = place.deepen(piece, again(module, args, kwargs), y)
            else:
                y, more = place.reach(piece, module, y, x, beside)
                new |= more
        return carry(y, new)

    def serve(self, output: Any, x: Tensor | None, *, is_new: bool) -> Any:
        """A host's output with all that its places add.

        Args:
            output: of the host.
            x: what it reads.
            is_new: whether the output is in memory of its own, which nobody else has yet, the backward pass neither.
        """
        is_new &= len(self.places) == 1
        for place in self:
            y = written_tensor(output, place.site.field)
            if y is None:
                if not place.is_growing:
                    continue
                kind = type(output).__name__
                raise ConfigError(
                    f"{place.layer_id!r} returned a {kind} without a tensor that a graft could be added to."
                )
            beside, y = carried_by(y), plain(y)
            grown = place.serve(y, x, is_new=is_new)
            if grown is not y:
                output = with_tensor(output, place.site.field, carry(grown, beside))
        return output

    def whole_state(self, prefix: str) -> dict[str, Any]:
        """The state dict with all keys, also while the model is dormant."""
        self._writes_all = True
        try:
            return self.state_dict(prefix=prefix)
        finally:
            self._writes_all = False

    @property
    def is_written(self) -> bool:
        """Whether a state dict has keys of it: once any seed of the model has a graft, or had one that was kept."""
        kin = (place for anchor in self.kin for place in (*anchor, *anchor.founded()))
        return self._writes_all or not all(place.is_dormant for place in kin)

    def __iter__(self) -> Iterator[Place]:
        for place in self.places.values():
            assert isinstance(place, Place)
            yield place


def _leave_out_dormant(anchor: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """A model that is dormant writes the keys of the bare host."""
    assert isinstance(anchor, Anchor)
    for key in [] if anchor.is_written else [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]


def _fill_absent_keys(
    anchor: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """A bare host's checkpoint loads strictly and leaves the seeds as they are; what a dormant model wrote, which its
    metadata tell, takes away what has grown since."""
    assert isinstance(anchor, Anchor)
    if not any(key.startswith(prefix) for key in state_dict):
        for place in (*anchor, *anchor.founded()) if "version" in metadata else ():
            place.forget()
        state_dict.update(anchor.whole_state(prefix))


class KasminaLayer(_Host):
    """Mixin in front of a host class. ``__class__`` is swapped, so no constructor of it ever runs."""

    _esper: Anchor
    esper_base: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        anchor: Any = self._modules.get(ESPER)  # not self._esper: __getattr__ costs more than the rest
        if anchor is None and isinstance(self, KasminaLayer):  # a replica
            return super().forward(*args, **kwargs)
        if anchor is None:  # unwrapped: a library has put this method on the instance, with something around it
            return type(self).forward(self, *args, **kwargs)
        if anchor.config is not None:  # the model
            if not torch.compiler.is_compiling():
                anchor.activity.called.run(trains=self.training and torch.is_grad_enabled())
            elif not LOOKS.is_open:
                LOOKS.open()
                try:
                    output = KasminaLayer.forward(self, *args, **kwargs)
                    LOOKS.flush()
                finally:
                    LOOKS.close()
                return output
        if kwargs:
            refuse_continuation((one for one in self.modules() if isinstance(one, Place)), kwargs)
        if not anchor.activity.is_on:
            output = super().forward(*args, **kwargs)
            return anchor.serve(output, None, is_new=False) if anchor.senses and self.training else output
        x = first_tensor(self, args, kwargs)
        beside, x = carried_by(x), plain(x)
        for place in anchor.feeds:
            if place.is_busy:
                place.capture(x)
        if anchor.colonies:
            anchor.begin_pass()
            try:
                output = anchor.serve(super().forward(*args, **kwargs), x, is_new=False)
            finally:
                anchor.end_pass()
        else:
            output = anchor.serve(super().forward(*args, **kwargs), x, is_new=self.esper_base in WRITES_NEW)
        return anchor.reach(self, output, x, beside, args, kwargs) if anchor.limbs else output

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The host's children. Esper's own child is not one of them: hosts iterate over their children."""
        return ((name, child) for name, child in super().named_children() if name != ESPER)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What ``DistributedDataParallel`` asks for when it is built: it leaves to Esper what grows."""
        own = vars(self).get("_ddp_params_and_buffers_to_ignore", [])
        held = (*self.named_parameters(), *self.named_buffers())
        return [*own, *(name for name, _ in held if f".{ESPER}." in f".{name}.")]

    @_ddp_params_and_buffers_to_ignore.setter
    def _ddp_params_and_buffers_to_ignore(self, names: list[str]) -> None:
        vars(self)["_ddp_params_and_buffers_to_ignore"] = names

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if recurse:
            self._esper._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Self:
        self._esper.train(mode)
        return super().train(mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = object.__reduce_ex__(self, protocol)
        return (_new_kasmina, (self.esper_base,), *reduced[2:])


def _steps(container: nn.Module) -> "OrderedDict[str, Any]":
    """What a container holds. Its seeds are not one of its steps."""
    return OrderedDict((name, module) for name, module in container._modules.items() if name != ESPER)


@contextmanager
def _without_seeds(container: nn.Module) -> Iterator[None]:
    """Inside, a container holds its steps alone, which its own methods count and number anew."""
    anchor = container._modules.pop(ESPER, None)
    try:
        yield
    finally:
        if anchor is not None:
            container._modules[ESPER] = anchor


class KasminaSequence(KasminaLayer):
    """What an ``nn.Sequential`` or ``nn.ModuleList`` needs besides."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(_steps(self).values())

    def __len__(self) -> int:
        return len(_steps(self))

    def __getitem__(self, index: int | slice) -> nn.Module:
        steps = _steps(self)
        if not isinstance(index, slice):
            module: nn.Module = list(steps.values())[index]
            return module
        if issubclass(self.esper_base, nn.Sequential):
            return self.esper_base(OrderedDict(list(steps.items())[index]))
        return self.esper_base(list(steps.values())[index])

    def __setitem__(self, index: Any, module: nn.Module) -> None:
        host: Any = super()
        with _without_seeds(self):
            host.__setitem__(index, module)

    def __delitem__(self, index: int | slice) -> None:
        host: Any = super()
        with _without_seeds(self):
            host.__delitem__(index)

    def insert(self, index: int, module: nn.Module) -> Any:
        """What the host's does."""
        host: Any = super()
        with _without_seeds(self):
            return host.insert(index, module)

    def append(self, module: nn.Module) -> Any:
        """What the host's does."""
        host: Any = super()
        with _without_seeds(self):
            return host.append(module)

    def extend(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's does."""
        host: Any = super()
        with _without_seeds(self):
            return host.extend(*args, **kwargs)


class KasminaDict(KasminaLayer):
    """What an ``nn.ModuleDict`` needs besides."""

    def __iter__(self) -> Iterator[str]:
        return iter(_steps(self))

    def __len__(self) -> int:
        return len(_steps(self))

    def __contains__(self, key: str) -> bool:
        return key in _steps(self)

    def keys(self) -> KeysView[str]:
        return _steps(self).keys()

    def values(self) -> ValuesView[nn.Module]:
        return _steps(self).values()

    def items(self) -> ItemsView[str, nn.Module]:
        return _steps(self).items()

    def clear(self) -> None:
        """What the host's does."""
        host: Any = super()
        with _without_seeds(self):
            host.clear()


class KasminaEncoder(KasminaLayer):
    """What an ``nn.TransformerEncoder`` needs besides: in eval mode it hands its layers nested tensors where padding is
    masked, which grafts cannot read. While anything grows in them it does not.
    """

    layers: nn.ModuleList

    @property
    def use_nested_tensor(self) -> bool:
        """What torch asks for before it makes them."""
        is_busy = any(isinstance(module, Anchor) and module.activity.is_on for module in self.layers.modules())
        return bool(vars(self)["use_nested_tensor"]) and not is_busy

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        vars(self)["use_nested_tensor"] = value


class KasminaAdapter(KasminaLayer):
    """What a layer with adapters of ``peft`` needs besides."""

    def unload_and_optionally_merge_module(self, merge: bool, **options: Any) -> nn.Module:
        """What ``merge_and_unload`` and ``unload`` put in place of the layer."""
        host: Any = super()
        if not all(place.is_dormant for place in self._esper):
            raise ConfigError(MERGING)
        if hasattr(host, "unload_and_optionally_merge_module"):
            merged: nn.Module = host.unload_and_optionally_merge_module(merge=merge, **options)
            return merged
        if merge:
            host.merge(**options)
        bare: nn.Module = host.get_base_layer()
        return bare


class KasminaPretrained(KasminaLayer):
    """What a model with ``save_pretrained`` needs besides."""

    def _get_name(self) -> str:
        """The name of the host's class: the Trainer shifts labels by it."""
        return self.esper_base.__name__

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, under the name of its class."""
        if any(isinstance(module, Place) and not module.is_dormant for module in self.modules()):
            raise ConfigError(SAVING)
        host: Any = self
        host.__class__, kind = self.esper_base, type(self)
        try:
            return host.save_pretrained(*args, **kwargs)
        finally:
            host.__class__ = kind


_CLASSES: dict[type[nn.Module], type] = {}


def kasmina_class(base: type[nn.Module]) -> type:
    """The class ``Kasmina<Base>``, made once."""
    if base not in _CLASSES:
        mixin: type = KasminaLayer
        if issubclass(base, nn.Sequential | nn.ModuleList):
            mixin = KasminaSequence
        elif issubclass(base, nn.ModuleDict):
            mixin = KasminaDict
        elif issubclass(base, nn.TransformerEncoder):
            mixin = KasminaEncoder
        elif hasattr(base, "save_pretrained"):
            mixin = KasminaPretrained
        elif is_adapted(base):
            mixin = KasminaAdapter
        own = {"esper_base": base, "forward": _forward_like(base)}
        _CLASSES[base] = type(f"Kasmina{base.__name__}", (mixin, base), own)
    return _CLASSES[base]


def _forward_like(base: type[nn.Module]) -> FunctionType:
    """The forward of a wrapped class, with the host's signature: trainers choose a batch's columns by it."""
    one = KasminaLayer.forward
    forward = FunctionType(one.__code__, one.__globals__, one.__name__, one.__defaults__, one.__closure__)
    vars(forward)["__signature__"] = inspect.signature(base.forward)
    return forward


def _new_kasmina(base: type[nn.Module]) -> Any:
    return object.__new__(kasmina_class(base))
