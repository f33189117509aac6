"""A task on a device, learned in a precision."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from esper.contracts.errors import ConfigError
from esper.tasks.task import HostFactory, Precision, Samples, Task


@dataclass(frozen=True)
class OnDevice:
    """A :class:`~esper.tasks.task.HostFactory` whose hosts lie on a device, with the weights that they have on the CPU.

    Args:
        make_host: builds them.
        device: where they are put.
    """

    make_host: HostFactory
    device: torch.device

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        return self.make_host(width_factor=width_factor).to(self.device)


def device_named(name: str) -> str:
    """The device that a name means here: ``"auto"`` is a GPU where there is one.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ConfigError: if there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not count:
        raise ConfigError(f"There is no device {name!r} here: torch finds no GPU. Take cpu, or auto.")
    if kind == "cuda" and int(number or 0) >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ConfigError(f"There is no device {name!r} here, only {there}. Take one of those.")
    return name


def device_name(device: torch.device) -> str:
    """A device with what it is, as ``cuda:0 (NVIDIA H200)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def placed(task: Task, device: str = "cpu", precision: Precision = "fp32", *, is_compiled: bool = False) -> Task:
    """The task with all its samples and its hosts on a device.

    Args:
        task: on the CPU.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"bf16"`` computes the forward pass under autocast to bfloat16, and the loss of it in float32;
            weights, gradients and optimizer stay float32.
        is_compiled: whether torch compiles what learns it.

    Raises:
        ConfigError: if there is no such device, or it has no room for the samples.
    """
    target = torch.device(device_named(device))
    task = replace(task, precision=precision, is_compiled=is_compiled)
    if target.type == "cpu":
        return task

    def moved(samples: Samples) -> Samples:
        return Samples(samples.x.to(target), samples.y.to(target))

    try:
        train, held_out, test = map(moved, (task.train, task.held_out, task.test))
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"The samples of {task.name} do not fit onto {device}. Take less data, or cpu.") from error
    make_host = OnDevice(task.make_host, target)
    return replace(task, make_host=make_host, train=train, held_out=held_out, test=test)
