"""What a built-in host is told of its size: ``--host-settings``."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from esper.contracts.errors import ConfigError, closest
from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import HostFactory
from esper.tasks.text_mlp import TextMLPHost

Settings = Mapping[str, int | Sequence[int]]

KNOWN = {
    "mlp": ("hidden", "depth"),
    "mlp on text": ("context", "window", "features", "hidden", "depth"),
    "cnn": ("widths", "strides"),
    "gpt": ("context", "width", "hidden", "blocks", "heads"),
}
"""By host; that of a text has settings of its own."""

LISTS = ("widths", "strides")
"""Settings with a number for each layer; ``hidden`` of a perceptron may be such a list too."""

LARGEST = 65_536
MOST_LAYERS = 12
MOST_BLOCKS = 1_000
LEAST_CONTEXT = 2

BYTES_PER_PARAMETER = 16
"""Weight, gradient and two moments of AdamW, in float32."""


def check(settings: Settings, host: str, *, is_text: bool) -> None:
    """Refuse settings that such a host has not, or of a wrong kind.

    Args:
        settings: by name, whole numbers or lists of them.
        host: ``"mlp"``, ``"cnn"``, ``"gpt"`` or ``"module:factory"``.
        is_text: whether it learns a text.

    Raises:
        ConfigError: naming the first that is wrong.
    """
    if ":" in host:
        raise ConfigError(f"--host-settings are for mlp, cnn and gpt; set the size of {host} in its factory.")
    known = KNOWN.get(f"{host} on text" if is_text else host, KNOWN[host])
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"--host-settings: --host {host} has no setting {name!r} here. {closest(name, known)}")
        numbers = [value] if isinstance(value, int) else list(value)
        if not isinstance(value, int) and name not in LISTS and (name, host) != ("hidden", "mlp"):
            raise ConfigError(f"--host-settings {name} must be one whole number, not {told(value)}.")
        least = LEAST_CONTEXT if name == "context" else 1
        most = MOST_BLOCKS if name == "blocks" else LARGEST
        if not numbers or not all(least <= number <= most for number in numbers):
            raise ConfigError(f"--host-settings {name} must be {least} to {most:,}, not {told(value)}.")
        if len(numbers) > MOST_LAYERS or (name == "depth" and numbers[0] > MOST_LAYERS):
            raise ConfigError(
                f"--host-settings {name}={told(value)} asks for more than {MOST_LAYERS} layers; take fewer."
            )


def sized(factory: HostFactory, settings: Settings, context: int) -> HostFactory:
    """The factory with these settings, which :func:`check` has let through.

    Args:
        factory: of a built-in host.
        settings: those that are given; others stay, but for the perceptrons of a transformer, four times its width.
        context: tokens of a window of the data.

    Raises:
        ConfigError: if they contradict each other or the data, or the host would be larger than the machine's memory.
    """
    made = _sized(factory, settings, context)
    with torch.device("meta"):  # which takes no memory
        count = sum(parameter.numel() for parameter in made().parameters())
    memory = _memory_bytes()
    if BYTES_PER_PARAMETER * count > memory:
        raise ConfigError(
            f"--host-settings {written(settings)} makes a host of {count:,} parameters, whose training takes "
            f"{BYTES_PER_PARAMETER * count / 1e9:,.0f} GB at least. This machine has {memory / 1e9:,.0f} GB. Take less."
        )
    return made


def _sized(factory: HostFactory, settings: Settings, context: int) -> HostFactory:
    fields: dict[str, Any] = {name: value for name, value in settings.items() if name != "context"}
    if not fields:
        return factory
    match factory:
        case GPTHost():
            return _gpt(factory, fields)
        case CNNHost():
            return _cnn(factory, fields)
        case MLPHost():
            hidden = _hidden(factory.widths[1:-1], fields)
            return replace(factory, widths=(factory.widths[0], *hidden, factory.widths[-1]))
        case TextMLPHost():
            hidden = _hidden(factory.hidden, fields)
            fields = {name: value for name, value in fields.items() if name != "depth"} | {"hidden": hidden}
            if fields.get("window", 0) > context:
                raise ConfigError(
                    f"--host-settings window={fields['window']} is longer than the context of {context} tokens. Take "
                    "a shorter window, or a longer context."
                )
            return replace(factory, **fields)
    raise AssertionError(f"{factory} is no built-in host")


def told(value: int | Sequence[int]) -> str:
    """A setting as it is written on the command line."""
    return str(value) if isinstance(value, int) else "-".join(map(str, value))


def written(settings: Settings) -> str:
    """All settings as they are written on the command line."""
    return ",".join(f"{name}={told(value)}" for name, value in settings.items())


def _memory_bytes() -> float:
    """Of this machine; infinite on Windows, which does not tell."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def _gpt(factory: GPTHost, fields: dict[str, Any]) -> GPTHost:
    if "width" in fields:
        fields = {"hidden": 4 * fields["width"]} | fields
    made = replace(factory, **fields)
    if made.width % made.heads:
        raise ConfigError(
            f"--host-settings: a width of {made.width} cannot be parted among {made.heads} heads. Take "
            f"width={made.heads * max(1, round(made.width / made.heads))}, or other heads."
        )
    return made


def _cnn(factory: CNNHost, fields: dict[str, Any]) -> CNNHost:
    lists: dict[str, Any] = {name: (one,) if isinstance(one, int) else tuple(one) for name, one in fields.items()}
    made = replace(factory, **lists)
    if len(made.widths) != len(made.strides) + 1:
        raise ConfigError(
            f"--host-settings: widths {told(made.widths)} are a stem and {len(made.widths) - 1} stages, and strides "
            f"{told(made.strides)} are of {len(made.strides)}. Give widths one number more than strides."
        )
    if math.prod(made.strides) > min(made.shape[1:]):
        raise ConfigError(
            f"--host-settings strides={told(made.strides)} divide by {math.prod(made.strides)} what is "
            f"{min(made.shape[1:])} positions long in the data. Take smaller ones."
        )
    return made


def _hidden(hidden: tuple[int, ...], fields: dict[str, Any]) -> tuple[int, ...]:
    """Widths of the hidden layers of a perceptron."""
    given, depth = fields.get("hidden", hidden), fields.get("depth")
    if isinstance(given, int):
        return (given,) * (depth or len(hidden))
    if depth is None or len(given) == depth:
        return tuple(given)
    if len(set(given)) == 1 and "hidden" not in fields:
        return (given[0],) * depth
    raise ConfigError(
        f"--host-settings hidden={told(given)} is {len(given)} layers and depth={depth} others. Give one of them."
    )
