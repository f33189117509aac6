"""Files of models with old layers: safetensors, with a header that says what the seeds are. Nothing is unpickled.

The header is one JSON text and its digest; it holds a digest of every tensor. That much stays as it is in all versions
of the format, so that a damaged file can be told from one of the future.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.checkpoint.digests import bytes_digest, digest
from esper.checkpoint.shape import check_shape
from esper.contracts.errors import CheckpointError, ConfigError
from esper.legacy.layer import LegacyKasminaLayer
from esper.legacy.saved import SavedLayer, check_layer

FORMAT, VERSION = "esper five-state model", 1


class _Header(TypedDict):
    format: str
    version: int
    layers: dict[str, SavedLayer]
    digests: dict[str, str]


@dataclass(frozen=True)
class LegacyFile:
    """What a file holds.

    Args:
        layers: the old layers, by their dotted names; ``""`` where the file is of one layer alone.
        tensors: the state dict, but for what ``layers`` says.
    """

    layers: Mapping[str, SavedLayer]
    tensors: Mapping[str, Tensor]


def legacy_layers(model: nn.Module) -> dict[str, LegacyKasminaLayer]:
    """The old layers of a model, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LegacyKasminaLayer)}


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model with old layers, or one such layer, to a file: whole, or not at all.

    Raises:
        ConfigError: if it has no old layer, or keeps what is no tensor besides.
        OSError: if it cannot be written; a file that was there stays.
    """
    layers, path = legacy_layers(model), Path(path)
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no LegacyKasminaLayer: save it by torch.save or safetensors.")
    own = {extra_state_key(name) for name in layers}
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key in own:
            continue
        if not isinstance(value, Tensor):
            raise ConfigError(f"{key!r} is a {type(value).__name__}. The file takes tensors only.")
        tensors[key] = value.detach().contiguous().clone()  # no two may share memory
    header: _Header = {
        "format": FORMAT,
        "version": VERSION,
        "layers": {name: layer.to_dict() for name, layer in layers.items()},
        "digests": {key: digest(tensor) for key, tensor in tensors.items()},
    }
    text = json.dumps(header)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished, {"header": text, "digest": bytes_digest(text.encode()).decode()})
        unfinished.replace(path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | Path) -> LegacyFile:
    """What a file holds, checked to the byte and for sense.

    Raises:
        CheckpointError: if there is none, it is damaged, no file of this kind, of a later version, names a blueprint
            that is not known, or contradicts itself; with what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Name a file of esper.legacy.files.save.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # cloned: where a file puts a tensor decides its alignment, and unaligned ones round in another order
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, it is no dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Name a file of esper.legacy.files.save.") from error
    header = _header(path, metadata)
    for key in sorted(header["digests"].keys() | tensors.keys()):
        if key not in tensors or digest(tensors[key]) != header["digests"].get(key):
            raise _damaged(path, f"{key!r} is missing or is not what was written")
    for name, layer in header["layers"].items():
        try:
            check_layer(layer, graft_of(name, tensors))
        except ConfigError as error:
            raise CheckpointError(f"{path}: layer {name!r}: {error}") from error
    return LegacyFile(header["layers"], tensors)


def load(model: nn.Module, path: str | Path) -> None:
    """Give a model with old layers what a file holds. Build its optimizer afterwards.

    Raises:
        CheckpointError: as :func:`read`, or if the file is of another model; nothing was changed then.
    """
    saved, layers = read(path), legacy_layers(model)
    host, there = _shapes(model.state_dict(), layers), _shapes(saved.tensors, saved.layers)
    host |= {name: tuple(layer.ports[:4]) for name, layer in layers.items()}
    there |= {name: tuple(layer["ports"]) for name, layer in saved.layers.items()}
    for key in sorted(host.keys() | there.keys()):
        if host.get(key) != there.get(key):
            raise CheckpointError(
                f"{path} is of another model: {key!r} is {host.get(key, 'missing')} here and "
                f"{there.get(key, 'missing')} there. Build the model as it was when it was saved."
            )
    for name, layer in layers.items():
        layer.take_on(saved.layers[name])
    own = {extra_state_key(name): layer.get_extra_state() for name, layer in layers.items()}
    model.load_state_dict({**saved.tensors, **own})


def extra_state_key(name: str) -> str:
    """Key of a layer's state in the state dict of its model."""
    return below(name) + "_extra_state"


def below(name: str, child: str = "") -> str:
    """What keys below a module, or a child of it, begin with."""
    return "".join(f"{part}." for part in (name, child) if part)


def graft_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The bytes of a layer's graft."""
    prefix = below(name, "graft")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _header(path: Path, metadata: Mapping[str, str]) -> _Header:
    text = metadata.get("header")
    if text is None or "digest" not in metadata:
        raise CheckpointError(f"{path} holds no model with old layers. Name a file of esper.legacy.files.save.")
    if bytes_digest(text.encode()).decode() != metadata["digest"]:
        raise _damaged(path, "the header does not match its digest")
    try:
        header: _Header = json.loads(text)
    except ValueError as error:
        raise _damaged(path, "the header is no JSON") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no model with old layers. Name a file of esper.legacy.files.save.")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {header.get('version')!r} of its format; this version of Esper reads {VERSION}. "
            "Update Esper."
        )
    try:
        check_shape(header, _Header, "")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return header


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}. Take a copy that is whole.")


def _shapes(tensors: Mapping[str, Any], layers: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items() if not _is_grafts(key, layers)}


def _is_grafts(key: str, layers: Mapping[str, Any]) -> bool:
    return any(key == extra_state_key(name) or key.startswith(below(name, "graft")) for name in layers)
