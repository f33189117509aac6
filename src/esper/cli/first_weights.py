"""The trained weights that a run begins with, kept in its directory: their file need not exist for ever."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from esper.cli.run_directory import FIRST_WEIGHTS
from esper.contracts.errors import ConfigError
from esper.tasks.task import Task
from esper.tasks.weights import put_weights, read_weights


def first_weights(path: str | None, task: Task, directory: Path | None) -> dict[str, Tensor] | None:
    """The weights that the host begins with; None if they are random. Nothing is written.

    Args:
        path: of the file; None begins with random weights.
        task: whose host they must fit.
        directory: of the run to resume, which holds a copy of them; None begins a new run.

    Raises:
        ConfigError: if they cannot be read or do not fit.
    """
    if path is None:
        return None
    kept = None if directory is None else directory / FIRST_WEIGHTS
    source = Path(path) if kept is None or not kept.exists() else kept
    try:
        weights = read_weights(source)
        with torch.random.fork_rng(devices=[]):
            put_weights(task.make_host(), weights, str(source))
    except ConfigError as error:
        raise ConfigError(f"--from: {error}") from error
    return weights


def keep_first_weights(weights: dict[str, Tensor], directory: Path) -> None:
    """Copy them into the run's directory, as a whole or not at all, unless they are there."""
    if (directory / FIRST_WEIGHTS).exists():
        return
    unfinished = directory / f".{FIRST_WEIGHTS}.{os.getpid()}"
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, unfinished)
    unfinished.replace(directory / FIRST_WEIGHTS)
