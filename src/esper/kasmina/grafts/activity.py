"""Which places a forward pass serves: plain numbers, so that a pass without grafts costs one look-up whatever the
number of seeds, and a compiled one nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from esper.kasmina.kernels.capture import is_capturing


class Called:
    """Which places of a model a compiled pass calls.

    None while the model is dormant. Once seeds germinate, those of theirs; once such a pass has run, and others
    germinate, all. So torch compiles a model three times at the most in training, and as often without gradients,
    whatever grows at single places. A call costs a copy of what the host wrote. Colonies are compiled with the host,
    while they are live.

    Attributes:
        has_run: whether a compiled pass has called any.
        generation: changes so far of what passes have to serve.
        watched: how much looks at passes in Python, so that none may be left out: seeds that train in isolation, and
            those who want to know what a graft adds.
        captured: the generation that a CUDA graph holds, if that is what training replays.
    """

    def __init__(self) -> None:
        self.has_run = False
        self.generation = self.watched = 0
        self.captured: int | None = None
        self._all: list[Activity] = []

    @property
    def is_stale(self) -> bool:
        """Whether training passes are replays of a CUDA graph that leaves out what has changed since."""
        return self.captured is not None and (self.captured != self.generation or self.watched > 0)

    def run(self, *, trains: bool) -> None:
        """Note a pass of the model that is made in Python.

        Args:
            trains: whether a training step makes it.
        """
        if is_capturing():
            self.captured = self.generation
        elif trains:
            self.captured = None

    def know(self, activities: Iterable["Activity"]) -> None:
        """Take in those of a place: its own, and those of the modules that serve it."""
        for one in activities:
            one.called = self
            self._all.append(one)

    def open(self, activities: Sequence["Activity"]) -> None:
        """Call a place from now on, whose activities these are."""
        if not all(one.is_open for one in activities):
            for one in self._all if self.has_run else activities:
                one.is_open = True


class Activity:
    """Whether a forward pass has places to serve that have grafts, or seeds that train in isolation.

    Args:
        below: a module below the host's, which is never called. Any hook there keeps ``nn.TransformerEncoderLayer`` in
            eval mode off its fast path, which reads the weights of linear1 and linear2 and would bypass grafts on them.

    Attributes:
        places: how many there are.
        is_open: whether a compiled pass calls them, but for colonies.
        has_colonies: whether there are colonies among them.
        called: what else it calls; one for each model.
    """

    def __init__(self, below: nn.Module | None = None) -> None:
        self.places, self.is_open, self.has_colonies, self.called = 0, False, False, Called()
        self._below, self._growing, self._colonies = below, 0, 0

    @property
    def is_on(self) -> bool:
        """Whether there are any; in a compiled pass, whether it calls them."""
        return self.is_open or self.has_colonies if torch.compiler.is_compiling() else self.places > 0

    def count(self, change: int, *, grows: bool = True, is_colony: bool = False) -> None:
        """Note that so many more places have grafts, or train in isolation.

        Args:
            change: by how many.
            grows: whether they have grafts.
            is_colony: whether they are colonies.
        """
        self.called.generation += 1
        self.places += change
        self._colonies += is_colony * change
        self.has_colonies = self._colonies > 0
        if not grows:
            self.called.watched += change
        if self._below is None or not grows:
            return
        self._growing += change
        self._below._forward_pre_hooks.clear()
        if self._growing:
            self._below.register_forward_pre_hook(_refuse_call)


def _refuse_call(module: nn.Module, args: Any) -> None:
    raise RuntimeError("What Esper keeps below a module is not called.")
