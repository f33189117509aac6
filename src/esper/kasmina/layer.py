"""A host layer with its seeds: the class that a module is swapped to, and what hangs below it.

``module.__class__ = Kasmina<Base>``: attributes, ties, isinstance checks and state-dict keys of the host survive. All
state is in one child, ``_esper``, an :class:`Anchor`; it holds one :class:`Place` for every set of seeds that writes
this module's output.
"""

import json
from collections import OrderedDict
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Ports
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import PlaceReport
from esper.kasmina.arena import Activity, Arena
from esper.kasmina.chunking import chunk_bounds
from esper.kasmina.seed_state import SeedState

ESPER = "_esper"

if TYPE_CHECKING:
    _Host = nn.Module
else:
    _Host = object


class Place(nn.Module):
    """The seeds of one place: state, live grafts and fossils.

    Args:
        layer_id: dotted name, ``first:last`` for a span, ``""`` for the whole model.
        kind: ``"model"``, ``"span"``, ``"block"`` or ``"layer"``.
        ports: features that grafts read, channels that they write; both lie on the last axis.
        num_seeds: seeds, at most ``ports.outputs``.
        host_parameters: parameters of the host modules that the place covers.
        like: a parameter of the host, for dtype and device.
        seed: of the random streams of its grafts.
    """

    def __init__(
        self, layer_id: str, kind: str, ports: Ports, num_seeds: int, host_parameters: int, like: Tensor, seed: int
    ) -> None:
        super().__init__()
        self.layer_id, self.kind, self.ports = layer_id, kind, ports
        self.host_parameters, self.seed = host_parameters, seed
        self.bounds = chunk_bounds(ports.outputs, num_seeds).tolist()
        self.state = SeedState(num_seeds).to(like.device)
        self.arena = Arena(ports.outputs, like.dtype, like.device)
        self._captured: Tensor | None = None

    @property
    def is_growing(self) -> bool:
        """Whether a forward pass has anything to add."""
        return len(self.arena.groups) > 0

    def capture(self, x: Tensor) -> None:
        """Remember a span's input until its last module has run."""
        self._captured = x

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The host's output ``y [..., outputs]`` with all grafts of the place; ``x [..., inputs]`` is its input."""
        if self.kind == "span":
            if self._captured is None:  # a shared module that also runs outside the span
                return y
            x, self._captured = self._captured, None
        return self.arena.add_to(y, x, self.state, raises_faults=self.training)

    def report(self) -> PlaceReport:
        """What a controller needs to know to choose this place."""
        return PlaceReport(
            layer_id=self.layer_id,
            kind=self.kind,
            num_seeds=self.state.num_seeds,
            is_dormant=bool((self.state.lifecycle == State.DORMANT).all()),
            is_under_embargo=bool((self.state.embargo_epochs > 0).any()),
            inputs=self.ports.inputs,
            outputs=self.ports.outputs,
            host_parameters=self.host_parameters,
        )

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(self.arena.topology()).encode()), dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Without what a forward pass left behind that an exception cut short: a copy has no use for it."""
        return self.__dict__ | {"_captured": None}

    def set_extra_state(self, state: Tensor) -> None:
        """Rebuild the grafts that the bytes to be loaded belong to. torch calls it before the children load."""
        self.arena.regrow(json.loads(bytes(state.cpu().tolist()).decode()))


class Anchor(nn.Module):
    """All that Esper keeps below one host module.

    Attributes:
        places: places that write this module's output, by a key that is unique in the module.
        feeds: places whose span starts here; each is a child of the module where its span ends.
        activity: how many of both have grafts.
        config: the configuration of the whole model; only the root's anchor has it.
    """

    config: GrowthConfig | None = None

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.ModuleDict()
        self.feeds: list[Place] = []
        self.activity = Activity()
        self.register_load_state_dict_pre_hook(_fill_absent_keys)

    def hold(self, key: str, place: Place) -> None:
        """Take a place that writes this module's output."""
        self.places[key] = place
        place.arena.activities.append(self.activity)

    def feed(self, place: Place) -> None:
        """Note a place whose span starts here."""
        self.feeds.append(place)
        place.arena.activities.append(self.activity)

    def __iter__(self) -> Iterator[Place]:
        for place in self.places.values():
            assert isinstance(place, Place)
            yield place


def _fill_absent_keys(anchor: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A bare host's checkpoint loads strictly and leaves the seeds as they are."""
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update(anchor.state_dict(prefix=prefix))


class KasminaLayer(_Host):
    """Mixin in front of a host class. ``__class__`` is swapped, so no constructor of it ever runs."""

    _esper: Anchor
    esper_base: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        anchor: Any = self._modules[ESPER]  # not self._esper: __getattr__ costs more than the rest
        if anchor.activity.places == 0:
            return super().forward(*args, **kwargs)
        x: Tensor | None = None
        for place in anchor.feeds:
            if place.is_growing:
                place.capture(_first_tensor(args, kwargs))
        output = super().forward(*args, **kwargs)
        for place in anchor:
            if place.is_growing:
                x = _first_tensor(args, kwargs) if x is None else x
                output = place.add_to(output, x)
        return output

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The host's children. Esper's own child is not one of them: hosts iterate over their children."""
        return ((name, child) for name, child in super().named_children() if name != ESPER)

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


_CLASSES: dict[type[nn.Module], type] = {}


def kasmina_class(base: type[nn.Module]) -> type:
    """The class ``Kasmina<Base>``, made once."""
    if base not in _CLASSES:
        mixin: type = KasminaLayer
        if issubclass(base, nn.Sequential | nn.ModuleList):
            mixin = KasminaSequence
        elif issubclass(base, nn.ModuleDict):
            mixin = KasminaDict
        _CLASSES[base] = type(f"Kasmina{base.__name__}", (mixin, base), {"esper_base": base})
    return _CLASSES[base]


def _new_kasmina(base: type[nn.Module]) -> Any:
    return object.__new__(kasmina_class(base))


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("A host layer with a graft was called without a tensor argument.")
