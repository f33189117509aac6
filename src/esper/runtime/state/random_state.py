"""The global random streams: torch on every device, numpy, Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The state of all streams that a training step may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    # the legacy numpy stream is the one that global draws come from
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of :func:`random_state`; streams that are not in it stay where they are."""
    if "torch" in state:
        torch.set_rng_state(state["torch"])
    if state.get("cuda"):
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        np.random.set_state(state["numpy"])
    if "python" in state:
        random.setstate(state["python"])


def as_seen_from(state: dict[str, Any], theirs: int | None, own: int | None) -> None:
    """Let what another process has drawn from its device be drawn from the own one here; changes ``state``.

    Args:
        state: of another process that sees the same devices; or a part of it.
        theirs: number of the device of that process, or None.
        own: number of the device of this process, or None.
    """
    cuda = state.get("cuda")
    if cuda and theirs is not None and own is not None:
        state["cuda"] = [{theirs: cuda[own], own: cuda[theirs]}.get(number, one) for number, one in enumerate(cuda)]


def moved_streams(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Of two states, the streams of ``now`` from which something was drawn since ``before``."""
    is_same = {
        "torch": torch.equal(before["torch"], now["torch"]),
        "cuda": all(map(torch.equal, before["cuda"], now["cuda"])),
        "numpy": all(map(np.array_equal, before["numpy"], now["numpy"])),
        "python": before["python"] == now["python"],
    }
    return {name: stream for name, stream in now.items() if not is_same[name]}


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside; ``seed`` gives other draws inside than there would be."""
    state = random_state()
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        yield
    finally:
        restore_random_state(state)
