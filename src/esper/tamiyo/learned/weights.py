"""Weights of the learned controller on disk: a safetensors file that says of what shape and for which features."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from esper.contracts.errors import ConfigError
from esper.tamiyo.learned.network import Shape, TamiyoNetwork
from esper.tamiyo.learned.tokens import names

KIND = "esper.tamiyo/1"
"""What the file says it is; another number cannot be read."""

LARGEST = 10 * 2**20
"""Bytes of a file."""


def save(network: TamiyoNetwork, path: Path, card: Mapping[str, Any]) -> None:
    """Write weights with their card.

    Args:
        network: as trained.
        path: of the file.
        card: from what, how and by whom it was made, and what it has shown; plain values.
    """
    told = {
        "kind": KIND,
        "shape": json.dumps(network.shape.to_dict()),
        "names": json.dumps(asdict(names())),
        "card": json.dumps(card),
    }
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, metadata=told)


def load(path: Path) -> tuple[TamiyoNetwork, dict[str, Any]]:
    """The network of a file, ready to judge, and its card.

    Raises:
        ConfigError: if it cannot be read, is something else, of another version or shape, for other features, or
            holds what is not finite.
    """
    remedy = "Train new ones (esper tamiyo train), or name another file after learned:."
    if not path.is_file():
        raise ConfigError(f"There are no weights of a controller at {path}. {remedy}")
    if (size := path.stat().st_size) > LARGEST:
        raise ConfigError(f"{path} has {size:,} bytes, and weights of a controller have at most {LARGEST:,}. {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} holds no weights that can be read: {error}. {remedy}") from None
    if told.get("kind") != KIND:
        raise ConfigError(
            f"{path} is {told.get('kind', 'no file of a controller')!r}, and this Esper reads {KIND!r}. {remedy}"
        )
    try:
        shape, features, card = (json.loads(told[name]) for name in ("shape", "names", "card"))
        network = TamiyoNetwork(Shape(**shape))
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"{path} does not say what network it holds: {error}. {remedy}") from None
    known = {part: list(those) for part, those in asdict(names()).items()}
    if features != known:
        raise ConfigError(f"{path} is for other features: {_difference(features, known)}. {remedy}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(
            f"{path} does not fit the shape that it names: {' '.join(str(error).split())}. {remedy}"
        ) from None
    spoilt = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise ConfigError(f"{path} holds values that are not finite, in {spoilt[0]!r}. {remedy}")
    return network.eval(), card


def _difference(found: Any, known: Mapping[str, list[str]]) -> str:
    if not isinstance(found, dict):
        return "it names none"
    for part, those in known.items():
        have = found.get(part, [])
        for name in those:
            if name not in have:
                return f"it does not know {name!r} of the {part}"
        for name in have:
            if name not in those:
                return f"it asks for {name!r} of the {part}"
    return "they come in another order"
