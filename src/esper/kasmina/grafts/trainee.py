"""A graft that trains in isolation: what it is, and which samples it is shown.

Legend: B samples of a batch, R of a reservoir, ... positions, C channels of the place, K of the chunk.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.grafts.graft import Graft

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

MAX_SAMPLES = 1024
MAX_ELEMENTS = 2**25
"""Of one reservoir: features and twice the chunk of every sample; 128 MiB in float32."""

MIN_SAMPLES = 8
"""A sample so large that fewer fit is not kept: the graft then starts as it was born."""

SAMPLES_PER_STEP = 64


@dataclass(frozen=True)
class Trainee:
    """A graft in isolation.

    Args:
        graft: it.
        objective: an id of ``OBJECTIVES``.
        seed: of its random streams.
        lr: learning rate.
        steps: training steps so far.
        shapes: of one sample's features and chunk, once there is one.
        is_recording: whether it still learns; else its bytes are chosen.
    """

    graft: Graft
    objective: str
    seed: int
    lr: float
    steps: int = 0
    shapes: Shapes | None = None
    is_recording: bool = True

    @property
    def capacity(self) -> int:
        """Samples that its reservoir holds."""
        if self.shapes is None:
            return 0
        x, chunk = (torch.Size(shape).numel() for shape in self.shapes)
        return min(MAX_SAMPLES, MAX_ELEMENTS // max(1, x + 2 * chunk))

    def buffers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of everything that it keeps in tensors, by name."""
        size, capacity = self.graft.num_parameters, self.capacity
        needed: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"params": ((size,), torch.float32)}
        if self.is_recording:
            needed |= dict.fromkeys(("exp_avg", "exp_avg_sq"), ((size,), torch.float32))
            needed["updates"] = (1,), torch.float32
        if self.is_recording and self.shapes is not None:
            x, chunk = self.shapes
            needed |= {
                "x": ((capacity, *x), torch.float32),
                "chunk": ((capacity, *chunk), torch.float32),
                "gradient": ((capacity, *chunk), torch.float32),
                "power": ((capacity,), torch.float32),  # mean square of the place's output
                "counts": ((capacity,), torch.bool),  # whether there is a finite sample
                "seen": ((), torch.int64),  # samples so far
            }
        return needed

    def samples(self, tensor: Tensor) -> Tensor:
        """``[samples, ..., channels]``: elements of the batch, or rows where each stands for itself."""
        return tensor.reshape(-1, tensor.shape[-1]) if self.graft.ports.layout == "features" else tensor

    def watch(self, x: Tensor, y: Tensor) -> "WatchedSamples | None":
        """Evenly spaced samples of a batch, copied; None if they are too large or of another shape than the first.

        Args:
            x: ``[batch, ..., features]`` that the graft reads.
            y: ``[batch, ..., C]``, the place's output.
        """
        first, end = self.graft.channels
        x, y = self.samples(x), self.samples(y)
        shapes = tuple(x.shape[1:]), tuple(y[..., first:end].shape[1:])
        capacity = replace(self, shapes=shapes).capacity
        if self.shapes not in (None, shapes) or capacity < MIN_SAMPLES or not len(x) == len(y) > 0:
            return None
        count = min(SAMPLES_PER_STEP, capacity, len(x))
        rows = torch.arange(count, device=y.device) * len(x) // count
        power = y[rows].float().square().flatten(1).mean(1)
        return WatchedSamples(self.graft.lifecycle, rows, x[rows], y[..., first:end][rows], power)

    def to_dict(self) -> dict[str, Any]:
        """The trainee as plain values."""
        shapes = None if self.shapes is None else [list(shape) for shape in self.shapes]
        rest = {name: getattr(self, name) for name in ("objective", "seed", "lr", "steps", "is_recording")}
        return {"graft": self.graft.to_dict(), "shapes": shapes, **rest}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Trainee":
        """Inverse of :meth:`to_dict`."""
        shapes = saved["shapes"]
        shapes = None if shapes is None else (tuple(shapes[0]), tuple(shapes[1]))
        return cls(**saved | {"graft": Graft.from_dict(saved["graft"]), "shapes": shapes})


@dataclass(frozen=True, slots=True)
class WatchedSamples:
    """What a forward pass showed of one trainee's samples, until their gradient arrives."""

    lifecycle: int
    rows: Tensor
    x: Tensor
    chunk: Tensor
    power: Tensor

    @property
    def shapes(self) -> Shapes:
        """Of one sample's features and chunk."""
        return tuple(self.x.shape[1:]), tuple(self.chunk.shape[1:])
