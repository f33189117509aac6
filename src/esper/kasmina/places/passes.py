"""The parameters of colonies in a forward pass, and in what a backward pass makes of it again (checkpointing)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from esper.contracts.errors import ConfigError
from esper.kasmina.channels.carried import Beside, Channels
from esper.kasmina.grafts.colony import Colony, Use

Uses = list[tuple[Colony, Use]]
"""Colonies, each as a pass uses it."""


class Passes:
    """What a place must know of the pass under way, and of the last one that may need a backward pass.

    A backward pass may make a part of the forward pass again. Without ``use_reentrant`` torch wants the same tensors in
    it as the first time; with it the first time is without gradients, and the second needs tensors of its own.

    Args:
        layer_id: of the place.
        uses: takes up the colonies.
    """

    def __init__(self, layer_id: str, uses: Callable[[], Uses]) -> None:
        self._layer_id, self._uses = layer_id, uses
        self._now: Uses | None = None
        self._kept: Uses = []  # of the last pass with gradients
        self._unwatched: set[str | Channels] = set()  # what ran in it without: modules, and channels that they wrote

    def begin(self) -> None:
        """A forward pass of the whole model begins: the parameters are taken once."""
        self._now = self._uses()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._kept, self._unwatched = self._now, set()

    def end(self) -> None:
        """It is over."""
        self._now = None

    def at(self, module: str) -> Uses:
        """The colonies as a module is to use them."""
        if self._now is not None:
            if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self._unwatched.add(module)
            return self._now
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return self._uses()
        return self._kept if self._kept and module not in self._unwatched else self._uses()

    def wrote(self, channels: Iterable[Channels]) -> None:
        """A module wrote new channels."""
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._unwatched.update(channels)

    def refuse_lost_gradients(self, x: Tensor, beside: Beside) -> None:
        """Refuse new channels that pass the edge of a part that runs without gradients to be made again: there torch
        hands on the gradient of the host's tensor alone.

        Args:
            x: what a module reads.
            beside: new channels that came with it.

        Raises:
            ConfigError: naming the remedy.
        """
        if torch.compiler.is_compiling() or self._now is not self._kept:
            return
        for key, new in beside.items():
            is_lost = new.tensor.requires_grad
            if torch.is_grad_enabled():
                is_lost = key in self._unwatched and x.requires_grad and not new.tensor.requires_grad
            if is_lost and key.layer_id == self._layer_id:
                raise ConfigError(
                    f"New channels of {self._layer_id!r} pass the edge of a part that is checkpointed with "
                    "use_reentrant=True, where their gradients get lost. Checkpoint with use_reentrant=False."
                )
