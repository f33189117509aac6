"""One place of a host: its seeds, what they sense, their grafts and fossils."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Ports, Recipe
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import State
from esper.contracts.reports import Layout, Piece, PlaceReport
from esper.contracts.settings.places import PlaceSettings
from esper.kasmina.channels.carried import Beside, Channels, New
from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.activity import Activity
from esper.kasmina.grafts.arena import Arena
from esper.kasmina.grafts.colony import Again, Colony
from esper.kasmina.grafts.guard import finite_G
from esper.kasmina.grafts.incubation import Incubation
from esper.kasmina.grafts.trainee import WatchedSamples
from esper.kasmina.numbered import numbered
from esper.kasmina.places.compiled import Pass, grown
from esper.kasmina.places.passes import Passes, Uses
from esper.kasmina.places.site import Site
from esper.kasmina.seeds.chunking import chunk_bounds
from esper.kasmina.seeds.reading import read_together
from esper.kasmina.seeds.seed_state import SeedState
from esper.kasmina.seeds.telemetry import Telemetry


class Place(nn.Module):
    """The seeds of one place: state, what they sense, live grafts and fossils.

    Args:
        site: where it lies.
        num_seeds: seeds, at most ``site.ports.outputs``.
        host_parameters: parameters of the host modules that the place covers.
        like: a parameter of the host, for dtype and device.
        config: of the whole model.

    Attributes:
        hosts: of a colony: the modules that its grafts may copy, by name.
    """

    def __init__(self, site: Site, num_seeds: int, host_parameters: int, like: Tensor, config: PlaceSettings) -> None:
        super().__init__()
        self.site, self.host_parameters, self.config = site, host_parameters, config
        self.bounds = chunk_bounds(site.ports.outputs, num_seeds).tolist()
        self.state = SeedState(num_seeds).to(like.device)
        rows = 0 if site.kind == "colony" else config.telemetry_rows  # its layers are places of their own
        self.telemetry = Telemetry(self.bounds, rows, like.device)
        self.arena = Arena(site.ports.outputs, like.dtype, like.device, site.layer_id)
        self.incubation = Incubation(self.arena.activities, like.device, site.geometry)
        self.hosts: dict[str, nn.Module] = {}  # in a dict, so that they are no children
        self._captured: Tensor | None = None
        self.passes = Passes(site.layer_id, self._uses)
        self._shown: dict[str, Any] | None = None
        self._activity = Activity()
        self.arena.activities.append(self._activity)
        self._number, self._learns = numbered(self), torch.zeros((), device=like.device, requires_grad=True)

    @property
    def layer_id(self) -> str:
        """Dotted name of the place."""
        return self.site.layer_id

    @property
    def kind(self) -> str:
        """``"model"``, ``"span"``, ``"block"``, ``"layer"`` or ``"colony"``."""
        return self.site.kind

    @property
    def ports(self) -> Ports:
        """Features that grafts read, channels that they write."""
        return self.site.ports

    def ports_of(self, blueprint: Recipe, first: int = 0, end: int | None = None) -> Ports:
        """What a graft of seeds ``first`` to ``end`` connects; of all of them without.

        Args:
            blueprint: of the graft.
            first: first of its seeds.
            end: end of its seeds.
        """
        if self.kind == "colony":
            return self.ports._replace(pieces=tuple(filter(blueprint.meets, self.site.pieces)))
        width = self.bounds[-1 if end is None else end] - self.bounds[first]
        inputs = width if blueprint.reads_chunk else self.ports.inputs
        return self.ports._replace(inputs=inputs, outputs=width, layout=self.layout_for(blueprint))

    def layout_for(self, blueprint: Recipe) -> Layout:
        """What lies around the channels that a graft reads: those of the place's input, or of its own chunk."""
        return self._chunk_layout if blueprint.reads_chunk else self.ports.layout

    @property
    def _chunk_layout(self) -> Layout:
        return self.site.geometry.chunk_layout(self.ports.layout)

    @property
    def seed(self) -> int:
        """Seed of the random streams of its grafts."""
        return self.config.seed

    @property
    def is_growing(self) -> bool:
        """Whether a forward pass has anything to add."""
        return len(self.arena.groups) > 0

    @property
    def is_dormant(self) -> bool:
        """Whether no seed has a graft, be it only germinated, and nothing has grown."""
        return not self.arena.grafts and not self.arena.fossils

    @property
    def is_busy(self) -> bool:
        """Whether a forward pass has to see the place's input."""
        return self._activity.is_on

    @property
    def _senses(self) -> bool:
        """Whether a forward pass may leave something behind: in training, but not what ``torch.func`` transforms, which
        must be free of side effects."""
        return self.training and not torch._C._are_functorch_transforms_active()

    def capture(self, x: Tensor | None) -> None:
        """Remember a span's input until its last module has run."""
        self._captured = x

    def serve(self, y: Tensor, x: Tensor | None, *, is_new: bool) -> Tensor:
        """All that a place does in a forward pass: add grafts, let incubating ones watch, sense.

        Args:
            y: output of the host.
            x: its input, unless the place is a span, which has captured it.
            is_new: whether nobody else has the memory of ``y``, so that grafts may be written into it.

        Returns:
            The output with all grafts.
        """
        if self.is_busy:
            if self.kind == "span":
                x, self._captured = self._captured, None
                if x is None:  # a shared module that also runs outside the span
                    return y
            if torch.compiler.is_compiling():
                y = grown(self._number, y, x, self._learns, senses=self._senses)
            else:
                y = self._grow(y, x, is_new=is_new and not torch._C._len_torch_dispatch_stack())  # a mode may keep it
        if self._senses and y.is_floating_point():
            self.telemetry.observe(y, self.site.geometry.output_axis)
        return y

    def _uses(self) -> Uses:
        return [
            (colony, colony.use(params_N, self.state, self._learns, raises_faults=self._senses))
            for colony, params_N in self.arena.colonies(self.state)
        ]

    def reach(
        self, piece: Piece, module: nn.Module, y: Tensor, x: Tensor | None, beside: Beside
    ) -> tuple[Tensor, Beside]:
        """What a module of the host gives with the pieces of colonies that meet it.

        Args:
            piece: how they do.
            module: the module.
            y: its output.
            x: its input.
            beside: new channels that came with the input.

        Returns:
            The output, and new channels beside it.
        """
        if x is None:
            return y, {}
        self.passes.refuse_lost_gradients(x, beside)
        new: dict[Channels, New] = {}
        for colony, use in self.passes.at(piece.module):
            index = colony.index(piece.module, piece.role)
            if index is None:
                continue
            if piece.role == "beside":
                y = self._add(colony, index, piece, y, x, use.parts[index])
            else:
                y, more = colony.widen(index, module, y, x, beside, use)
                new |= more
        self.passes.wrote(new)
        return y, new

    def deepen(self, piece: Piece, again: Again, y: Tensor) -> Tensor:
        """What a block of the host gives with the copies of it that run behind it.

        Args:
            piece: where they do.
            again: calls the block once more.
            y: its output.
        """
        for colony, use in self.passes.at(piece.module):
            index = colony.index(piece.module, piece.role)
            if index is not None:
                grown = colony.deepen(index, again, y, use)
                y = _like(grown, y)
        return y

    def _add(self, colony: Colony, index: int, piece: Piece, y: Tensor, x: Tensor, params_N: Tensor) -> Tensor:
        geometry = self.site.geometries[piece.module]
        y_last = geometry.channels_last(y)
        x_last = geometry.read(x, y_last)
        x_is_finite = finite_G(x_last.unsqueeze(0)) if self._senses else None
        grown = geometry.restore(colony.add_to(index, y_last, x_last, params_N, self.state, geometry, x_is_finite))
        return _like(grown, y)

    def _grow(self, y: Tensor, x: Tensor | None, *, is_new: bool) -> Tensor:
        y, read = self._grown(y, x, senses=self._senses, is_new=is_new)
        if self._senses and self.incubation.is_active and y.requires_grad:
            seen = self.incubation.watch(read, self.site.geometry.channels_last(y))
            if seen:
                y.register_hook(partial(self._keep, seen))
        return y

    def grow(self, y: Tensor, x: Tensor | None, *, senses: bool, learns: bool) -> tuple[Tensor, Pass | None]:
        """What the host wrote with all grafts, in a compiled pass.

        Args:
            y: what the host wrote.
            x: what it read; None where grafts read what it wrote.
            senses: whether the pass may leave something behind.
            learns: whether a backward pass may follow.

        Returns:
            The output, and the way back if it may be gone.
        """
        self._activity.called.has_run = True
        self._activity.called.run(trains=learns)
        if not learns:
            return self._grown(y, x, senses=senses)[0], None
        wrote, was_read = y.detach().requires_grad_(), None if x is None else x.detach().requires_grad_()
        grown, read = self._grown(wrote, was_read, senses=senses)
        seen: list[WatchedSamples] = []
        if senses and self.incubation.is_active:
            seen = self.incubation.watch(read, self.site.geometry.channels_last(grown))
        passed = Pass(grown, wrote, was_read, self.arena.slots, partial(self._keep, seen))
        return y if grown is wrote else grown.detach(), passed

    def _keep(self, seen: list[WatchedSamples], grad: Tensor | None) -> None:
        if grad is not None:  # the loss depends on what the place wrote
            self.incubation.keep(seen, self.site.geometry.channels_last(grad))

    def _grown(self, y: Tensor, x: Tensor | None, *, senses: bool, is_new: bool = False) -> tuple[Tensor, Tensor]:
        """What the host wrote with all grafts, and what they read."""
        if y.is_nested:
            raise ConfigError(
                f"{self.layer_id!r} returned a nested tensor, which grafts cannot be added to. Pad the batch to a "
                "plain tensor."
            )
        geometry = self.site.geometry
        y_last = geometry.channels_last(y)
        read = y_last if x is None or not self.ports.inputs else geometry.read(x, y_last)
        if self.is_growing:
            may_write_over = is_new and not (read is y_last and self.incubation.is_active)
            grown = self.arena.add_to(
                y_last, read, self.state, geometry, raises_faults=senses, may_write_over=may_write_over
            )
            y = _like(geometry.restore(grown), y)
        return y, read

    def show(self, site: Site, threshold: float | None) -> None:
        """Take on what a run has shown.

        Args:
            site: with what was seen of the host's tensors.
            threshold: value at or below which the activation behind the place passes nothing, if it is known.
        """
        self.site, self.incubation.geometry = site, site.geometry
        self._shown = {
            "layout": site.ports.layout,
            "positions": site.ports.positions,
            "geometry": site.geometry.to_dict(),
            "form": list(site.form),
            "argument": site.argument,
            "is_walked": site.is_walked,
            "threshold": threshold,
        } | ({"pieces": [asdict(piece) for piece in site.pieces]} if site.pieces else {})
        self.telemetry.set_threshold(threshold)

    def readings(self) -> list[Tensor]:
        """What :meth:`report` reads from the device."""
        state = self.state
        return [state.lifecycle, state.version, state.embargo_epochs, self.telemetry.readings()]

    def report(self, gradient_scale: float = 1.0, readings: Sequence[Tensor] | None = None) -> PlaceReport:
        """What a controller needs to know to choose this place.

        Args:
            gradient_scale: what the loss was multiplied by, such as a GradScaler's scale.
            readings: its :meth:`readings` as :func:`read_together` gives them; None reads them here.
        """
        if readings is None:
            (readings,) = read_together([self.readings()])
        states, versions, embargo_epochs, sensed = readings
        return PlaceReport(
            layer_id=self.layer_id,
            kind=self.kind,
            is_step=self.site.is_step,
            states=states.int().tolist(),
            versions=versions.int().tolist(),
            is_under_embargo=bool((embargo_epochs > 0).any()),
            inputs=self.ports.inputs,
            outputs=self.ports.outputs,
            bounds=self.bounds,
            layout=self.ports.layout,
            chunk_layout=self._chunk_layout,
            positions=self.ports.positions,
            host_parameters=self.host_parameters,
            grown_parameters=self.arena.num_parameters,
            seeds=self.telemetry.report(gradient_scale, sensed),
            gradient_noise=self.telemetry.gradient_noise(sensed),
            pieces=self.site.pieces,
        )

    def topology(self) -> dict[str, Any]:
        """What must be rebuilt before bytes can be loaded, as plain values."""
        return {
            "num_seeds": self.state.num_seeds,
            "shown": self._shown,
            "arena": self.arena.topology(),
            "incubation": self.incubation.topology(),
        }

    def regrow(self, topology: dict[str, Any]) -> None:
        """Take on a topology; bytes are undefined until they are loaded."""
        if topology["num_seeds"] != self.state.num_seeds:
            self._resize(topology["num_seeds"])
        if self._shown is None and topology["shown"] is not None:
            saved = topology["shown"]
            ports = self.ports._replace(layout=saved["layout"], positions=saved["positions"])
            geometry = Geometry.from_dict(saved["geometry"])
            site = replace(self.site, ports=ports, geometry=geometry, form=tuple(saved["form"]))
            site = replace(site, **{name: saved[name] for name in ("argument", "is_walked") if name in saved})
            if "pieces" in saved:
                site = replace(site, pieces=tuple(map(Piece.from_dict, saved["pieces"])))
            self.show(site, saved["threshold"])
        self.arena.regrow(topology["arena"])
        self.incubation.regrow(topology["incubation"])

    def forget(self) -> None:
        """Be as after ``esper.wrap``: nothing has grown, nothing is known."""
        self._resize(self.state.num_seeds)
        arena = self.arena
        arena.regrow(Arena(self.ports.outputs, arena.slots.dtype, arena.slots.device, self.layer_id).topology())
        self.incubation.regrow({"trainees": []})

    def rechunk(self, num_seeds: int) -> None:
        """Deal the channels to another number of seeds. Fossils and what the channels have sensed stay.

        Every new seed's version is above those of all old ones that had its channels.

        Raises:
            ConfigError: if the place has fewer channels than that.
            TransitionError: if a seed is not DORMANT.
        """
        try:
            bounds = chunk_bounds(self.ports.outputs, num_seeds).tolist()
        except ConfigError as error:
            raise ConfigError(f"{self.layer_id!r} cannot be chunked anew: {error}") from error
        busy = self.state.lifecycle.nonzero().flatten().tolist()
        if busy:
            names = ", ".join(f"{seed} ({State(int(self.state.lifecycle[seed])).name})" for seed in busy[:5])
            raise TransitionError(
                f"{self.layer_id!r} cannot be chunked anew while seeds are not DORMANT: {names}. Wait for their "
                "outcome, or cancel them."
            )
        old, old_bounds = self.state.version.tolist(), self.bounds
        versions = [
            1 + max(v for v, a, b in zip(old, old_bounds, old_bounds[1:], strict=False) if a < end and start < b)
            for start, end in pairwise(bounds)
        ]
        self._resize(num_seeds)
        self.state.version.copy_(torch.tensor(versions))
        self.arena.rebound(bounds)

    def _resize(self, num_seeds: int) -> None:
        self.bounds = chunk_bounds(self.ports.outputs, num_seeds).tolist()
        self.state = SeedState(num_seeds).to(self.state.alpha.device)
        self.telemetry.rebound(self.bounds)

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(self.topology()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Rebuild the grafts that the bytes to be loaded belong to. torch calls it before the children load."""
        self.regrow(json.loads(bytes(state.cpu().tolist()).decode()))

    def __getstate__(self) -> dict[str, Any]:
        """Without what a forward pass left behind that an exception cut short: a copy has no use for it."""
        return self.__dict__ | {"_captured": None, "passes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.passes, self._number = Passes(self.site.layer_id, self._uses), numbered(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._learns = self._learns.detach().to(self.arena.slots.device).requires_grad_()
        return self


def _like(grown: Tensor, y: Tensor) -> Tensor:
    """With the host's strides: other ones round differently in what follows, and may not be viewed as it does."""
    return grown if grown.stride() == y.stride() else torch.empty_like(y).copy_(grown)
