"""The task that options of a run name."""

import os
import sys

import torch

from esper.cli.options import Options
from esper.tasks.catalogue import load_task
from esper.tasks.placed import device_named, placed
from esper.tasks.task import Task


def asked_task(options: Options) -> Task:
    """Set the threads of torch, and load the task onto its device.

    A host of the user's own may lie in the current directory.

    Raises:
        ConfigError: if the data, the host or the device cannot be used.
    """
    torch.set_num_threads(options.threads)
    if ":" in options.host and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    device = device_named(options.device)  # before the data, which may take long
    task = load_task(
        options.data,
        options.seed,
        options.host,
        label=options.label,
        task=options.task,
        layout=options.layout,
        host_settings=options.host_settings,
    )
    return placed(task, device, options.precision, is_compiled=options.compile)
