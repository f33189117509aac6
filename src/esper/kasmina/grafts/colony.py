"""A colony as the host's layers meet it: one graft with pieces at several of them.

Legend: G grafts of a group, here 1; N parameters of one part.

A piece that lies beside a module is a graft there like any other, and one that copies a block adds to what the block
gave the difference that the copy makes of it. The others widen a layer: what it writes gets new
channels, which travel beside the host's (:mod:`esper.kasmina.channels`), and what it reads of new channels is added to
its output, scaled by alpha. Whatever enters the host, in either direction, passes the guard.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.contracts.reports import Piece
from esper.kasmina.channels.carried import Beside, Channels, New
from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.graft import Graft, unflatten
from esper.kasmina.grafts.group import Group, Watcher, blame_of, blended, in_precision_of, share_of
from esper.kasmina.grafts.guard import NOBODY, Blame, Entry, Exit, finite_G
from esper.kasmina.grafts.widened import CHANNELS_FIRST, widened
from esper.kasmina.seeds.seed_state import SeedState


class Again(Protocol):
    """A call of a block of the host once more."""

    def __call__(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """What it gives where it reads ``x``, with these parameters and buffers by name; the others are the host's."""


@dataclass(frozen=True)
class Use:
    """A colony as one forward pass uses it.

    Args:
        parts: parameters ``[N]`` of each of its pieces.
        mark: of all of them.
        blame: for what they do.
        alpha_G: float32 ``[1]``, by which what they add is scaled.
        counts_G: bool ``[1]``, whether they add anything: alpha is above 0, and all parameters are finite.
    """

    parts: tuple[Tensor, ...]
    mark: Tensor
    blame: Blame
    alpha_G: Tensor
    counts_G: Tensor


class ChannelStatistics(_BatchNorm):
    """Running statistics of new channels behind a batch norm of the host; of any number of axes, without weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def statistics_of(graft: Graft) -> dict[str, int]:
    """Channels whose running statistics a graft keeps, by the name of the buffers' module: new ones behind a batch norm
    of the host, and those of batch norms in copies."""
    new = {
        f"{graft.lifecycle}_{index}": graft.blueprint.channels(piece.writes)  # type: ignore[attr-defined]
        for index, piece in enumerate(graft.pieces)
        if piece.role == "batch_norm"
    }
    copied = {
        _name(graft, index, number): channels
        for index, piece in enumerate(graft.pieces)
        for number, (_, channels) in enumerate(piece.copy.norms if piece.copy is not None else ())
    }
    return new | copied


def copied_norms(graft: Graft, hosts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The host's batch norms that are in copies of blocks, with the name of what keeps the copy's statistics.

    Args:
        graft: the graft.
        hosts: the blocks, by name.
    """
    for index, piece in enumerate(graft.pieces):
        for number, (norm, _) in enumerate(piece.copy.norms if piece.copy is not None else ()):
            yield _name(graft, index, number), hosts[piece.module].get_submodule(norm)


def tensors_of(graft: Graft, index: int, params_N: Tensor, statistics: nn.ModuleDict) -> dict[str, Tensor]:
    """What a part of a graft computes with, by name: its parameters; in a copy of a block also running statistics."""
    found = unflatten(graft.blueprint, graft.parts[index], params_N)
    copied = graft.pieces[index].copy if graft.pieces else None
    for number, (norm, _) in enumerate(copied.norms if copied is not None else ()):
        kept = statistics[_name(graft, index, number)]
        found |= {f"{norm}.{name}": buffer for name, buffer in kept.named_buffers()}
    return found


def _name(graft: Graft, index: int, number: int) -> str:
    """Of what keeps the statistics of one batch norm of one copy."""
    return f"{graft.lifecycle}_{index}_{number}"


class Colony(nn.Module):
    """One graft with pieces at several layers of the host.

    Args:
        graft: the graft.
        name: of its place.
        statistics: of its new channels behind batch norms.
        device: where the activations are.

    Attributes:
        watchers: are shown what every piece adds to the host's channels in every forward pass.
    """

    slots: Tensor
    seeds: Tensor

    def __init__(self, graft: Graft, name: str, statistics: nn.ModuleDict, device: torch.device) -> None:
        super().__init__()
        self.grafts = [graft]
        self.blueprint, self.num_parameters = graft.blueprint, graft.num_parameters
        self.is_live = graft.slot is not None
        self.watchers: list[Watcher] = []
        self._name, self._statistics = name, [statistics]  # not a child: the arena's
        self._sizes = [graft.blueprint.num_parameters(part) for part in graft.parts]
        self.register_buffer("slots", torch.tensor([graft.slot or 0], device=device), persistent=False)
        self.register_buffer("seeds", torch.tensor([graft.seeds[0]], device=device), persistent=False)
        met = ((piece.module, piece.role) for piece in graft.pieces)
        self._index: dict[tuple[str, str], int] = {key: index for index, key in enumerate(met)}
        self._beside: dict[int, Group] = {}
        for index, piece in enumerate(graft.pieces):
            if piece.role == "beside":
                part = replace(graft.alone(index), slot=0 if self.is_live else None)  # of its own parameters
                self._beside[index] = group = Group([part], piece.outputs, device)
                group.watchers.append(partial(self._show, index))

    def index(self, module: str, role: str) -> int | None:
        """Number of the piece that meets a layer in this way; None if there is none."""
        return self._index.get((module, role))

    def is_channels_first(self, index: int) -> bool:
        """Whether what a piece adds has its channels on axis 1 behind the graft's, and not last."""
        piece = self.grafts[0].pieces[index]
        return piece.role in CHANNELS_FIRST or (piece.role == "copy" and piece.axis == 1)

    def use(self, params_N: Tensor, state: SeedState, learns: Tensor, *, raises_faults: bool) -> Use:
        """Begin a forward pass.

        Args:
            params_N: of all pieces.
            state: of the colony's seed.
            learns: scalar with a gradient of its own, so that what is not finite is found where nothing learns.
            raises_faults: whether what is not finite is noted.
        """
        params_GN = params_N.unsqueeze(0)
        is_finite_G, mark = finite_G(params_GN), learns.expand(3, 1)
        blame, alpha_G = blame_of(self, state, raises_faults=raises_faults), share_of(self, state)
        blame.on(~is_finite_G)
        if not self._beside:  # those enter by themselves
            _, params_GN, mark = Entry.apply(params_GN.new_empty(0), params_GN, mark, True, *blame)
        return Use(params_GN.squeeze(0).split(self._sizes), mark, blame, alpha_G, is_finite_G & (alpha_G > 0))

    def add_to(
        self,
        index: int,
        y: Tensor,
        x: Tensor,
        params_N: Tensor,
        state: SeedState,
        geometry: Geometry,
        x_is_finite: Tensor | None,
    ) -> Tensor:
        """As :meth:`Group.add_to`, of the piece that lies beside a module."""
        return self._beside[index].add_to(
            y, x, params_N.unsqueeze(0), state, geometry, x_is_finite, raises_faults=x_is_finite is not None
        )

    def widen(
        self, index: int, module: nn.Module, y: Tensor, x: Tensor, beside: Beside, use: Use
    ) -> tuple[Tensor, Beside]:
        """What a layer of the host gives with the piece that widens it.

        Args:
            index: of the piece.
            module: the layer.
            y: its output.
            x: its input.
            beside: new channels that came with the input.
            use: of the pass.

        Returns:
            The output, and the new channels beside it.
        """
        (graft,) = self.grafts
        piece: Piece = graft.parts[index]
        params = unflatten(graft.blueprint, piece, in_precision_of(y, use.parts[index]))
        mark = use.mark
        if "new" in params and x.is_floating_point():
            x, mark = _entered(x, use)
        came = beside.get(Channels(self._name, graft.lifecycle, piece.source))
        name, statistics = f"{graft.lifecycle}_{index}", self._statistics[0]
        added, new = widened(
            piece,
            module,
            params,
            x,
            None if came is None else came.tensor,
            statistics[name] if piece.role == "batch_norm" else None,
        )
        if added is not None:
            y = self._added(y, added, index, use, mark)
        if new is None:
            return y, {}
        axis = 1 if piece.role in CHANNELS_FIRST else new.dim() - 1
        return y, {Channels(self._name, graft.lifecycle, piece.target): New(new, axis)}

    def deepen(self, index: int, again: Again, y: Tensor, use: Use) -> Tensor:
        """What a block of the host gives with the copy of it that runs behind it. What the copy draws leaves no trace
        in the random stream.

        Args:
            index: of the piece.
            again: calls the block once more.
            y: its output.
            use: of the pass.
        """
        params_N = use.parts[index]
        read, mark = _entered(y, use)
        is_compiling = torch.compiler.is_compiling()  # a compiled model's random stream has no state to go back to
        with nullcontext() if is_compiling else torch.random.fork_rng([y.device] if y.is_cuda else []):
            copied = again(read, tensors_of(self.grafts[0], index, params_N, self._statistics[0]))
        return self._added(y, copied - read, index, use, mark)

    def _added(self, y: Tensor, added: Tensor, index: int, use: Use, mark: Tensor) -> Tensor:
        y_G = y.unsqueeze(0)
        may_blame_G = finite_G(y_G) if use.blame.state != NOBODY else None
        delta_G = Exit.apply(added.unsqueeze(0), mark, may_blame_G)
        self._show(index, delta_G)
        grown_G, is_sound_G = blended(y_G, delta_G, use.alpha_G, use.counts_G)
        if may_blame_G is not None:
            use.blame.on(may_blame_G & ~is_sound_G)
        return grown_G.squeeze(0)

    def _show(self, index: int, delta: Tensor, *_: int) -> None:
        for show in self.watchers:
            show(delta, index)


def _entered(x: Tensor, use: Use) -> tuple[Tensor, Tensor]:
    """What a piece reads of the host, and the mark of what it adds."""
    x_G, _, mark = Entry.apply(x, x.new_empty(1, 0), use.mark, True, *use.blame._replace(state=NOBODY))
    return x_G.squeeze(0), mark
