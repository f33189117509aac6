"""The test samples one by one, as a file: by them two runs can be compared."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.evaluation.row import PerSample


def write_samples(path: Path, rows: Mapping[str, PerSample], groups: Tensor | None) -> None:
    """Write the results of all rows, whole or not at all.

    Args:
        path: a ``.safetensors`` file: float32 ``[n]`` tensors ``NAME.loss`` and ``NAME.correct``, and ``groups``.
        rows: by name.
        groups: int64 ``[n]``; samples of one number belong together.
    """
    tensors = {} if groups is None else {"groups": groups.contiguous()}
    for name, test in rows.items():
        tensors[f"{name}.loss"], tensors[f"{name}.correct"] = test.losses.clone(), test.correct.clone()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def read_samples(path: Path) -> dict[str, PerSample]:
    """What :func:`write_samples` wrote; empty if there is no such file, or none that can be read."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return {}
    names = {name.removesuffix(".loss") for name in tensors if name.endswith(".loss")}
    return {name: PerSample(tensors[f"{name}.loss"], tensors[f"{name}.correct"]) for name in sorted(names)}
