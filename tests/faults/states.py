"""States that are saved and told apart again."""

from collections import Counter
from pathlib import Path

import torch

from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from tests.tree_digest import tree_digest


def state(step: int, part: Packed | None = None, size: int = 40) -> dict:
    """What a session saves, in small."""
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "model": {
            "weight": torch.randn(size, 7, generator=generator),
            "mask": torch.rand(9, generator=generator) < 0.5,
        },
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "milestones": Counter({3: 1, step: 2}),
        "note": ("grüße", float("nan"), {1: None}),
        "part": part,
    }


def seal(step: int, part_step: int | None = None) -> str:
    """Digest of a state, and of the part that it holds."""
    return tree_digest(state(step)) + ("" if part_step is None else tree_digest(state(part_step)))


def seal_of(saved: dict) -> str:
    """The same, of what was read."""
    part = saved["part"]
    return tree_digest(saved | {"part": None}) + ("" if part is None else tree_digest(part.read()))


def two_generations(directory: Path) -> tuple[Path, Path]:
    """Steps 1 and 2, each with a part that lies on disk."""
    older, newer = (store.write(directory, state(step, Packed.of(state(step + 10)))) for step in (1, 2))
    return older, newer


OLDER, NEWER = seal(1, 11), seal(2, 12)
"""Of both."""
