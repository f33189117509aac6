"""One checkpoint directory: up to two generations, each written whole or not at all.

A generation is a folder ``<number>`` with ``tensors.safetensors``, a file of each part of the state that lies on disk
already, and ``manifest.json``; the manifest is one line with the structure and digests of every tensor and of their
files, and one with the digest of the first. A generation is written under another name, flushed, and renamed; a reader
never sees a half one.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.checkpoint.digests import DIGEST_BYTES, digest
from esper.checkpoint.digests import bytes_digest as _bytes_digest
from esper.checkpoint.packed import Packed
from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError

FORMAT = 6
"""Of what is stored; raised by every change after which older checkpoints do not fit."""

GENERATIONS = 2


def write(directory: Path, tree: Any) -> Path:
    """Store a nested state as the newest generation of ``directory``.

    Returns:
        The generation's folder. Only the newest ``GENERATIONS`` are kept.

    Raises:
        CheckpointError: if it holds what cannot be stored.
        OSError: if it cannot be written; the generations that are there stay.
    """
    apart: dict[str, Packed] = {}
    structure, tensors = flatten(tree, apart)
    directory.mkdir(parents=True, exist_ok=True)
    existing = _generations(directory)
    target = directory / f"{(int(existing[-1].name) if existing else 0) + 1:06d}"
    unfinished = directory / f".{target.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        save_file(_unshared(tensors), unfinished / "tensors.safetensors")
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{unfinished / 'tensors.safetensors'} cannot be written: {error}") from error
    for name, part in apart.items():
        part.copy_to(unfinished / name)
    manifest = {
        "format": FORMAT,
        "structure": structure,
        "digests": {name: digest(tensor) for name, tensor in tensors.items()},
        "file_digest": _file_digest(unfinished / "tensors.safetensors"),
        "apart": {name: part.seal for name, part in apart.items()},
    }
    text = json.dumps(manifest).encode()
    (unfinished / "manifest.json").write_bytes(text + b"\n" + _bytes_digest(text))
    for file in (*unfinished.iterdir(), unfinished):
        _flush(file)
    unfinished.rename(target)
    _flush(directory)
    for old in [*existing[: len(existing) + 1 - GENERATIONS], *directory.glob(".[0-9]*")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read(directory: Path) -> Any:
    """The nested state of a checkpoint directory's newest generation, or of the generation that is named.

    What was on disk when it was written is only checked, and stays there.

    Raises:
        CheckpointError: if there is none, or any byte of it differs from what was written.
    """
    source = directory
    if not (directory / "manifest.json").exists():
        generations = _generations(directory)
        if not generations:
            raise CheckpointError(f"There is no checkpoint in {directory}.")
        source = generations[-1]
    try:
        text, _, own_digest = (source / "manifest.json").read_bytes().rpartition(b"\n")
        if _bytes_digest(text) != own_digest:
            raise CheckpointError(_damaged(source, "the manifest does not match its digest"))
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{source} has format {manifest['format']}; this version of Esper reads {FORMAT}. "
                "Go on with the version that wrote it, or start anew."
            )
        # cloned: where a file puts a tensor decides its alignment, and unaligned batches sum in another order
        tensors = {name: tensor.clone() for name, tensor in load_file(source / "tensors.safetensors").items()}
        apart = {name: Packed.at(source / name) for name in manifest.get("apart", {})}
        for name, part in apart.items():
            part.check()
            if part.seal != manifest["apart"][name]:
                raise ValueError(f"{name} does not match its digest")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(_damaged(source, str(error))) from error
    for name in sorted(manifest["digests"].keys() | tensors.keys()):
        if name not in tensors or digest(tensors[name]) != manifest["digests"].get(name):
            raise CheckpointError(_damaged(source, f"{name.lstrip('.')} does not match its digest"))
    if _file_digest(source / "tensors.safetensors") != manifest["file_digest"]:  # a True that was 1 and now is 33
        raise CheckpointError(_damaged(source, "tensors.safetensors does not match its digest"))
    return unflatten(manifest["structure"], tensors, apart)


def tree_digest(tree: Any) -> str:
    """Digest of a whole nested state."""
    structure, tensors = flatten(tree)
    parts = (f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items()))
    return _bytes_digest("\n".join([json.dumps(structure), *parts]).encode()).decode()


def _generations(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def _damaged(source: Path, why: str) -> str:
    others = [other.name for other in _generations(source.parent) if other != source]
    remedy = f"Another generation may be whole: load {source.parent / others[-1]}." if others else "Start anew."
    return f"The checkpoint {source} is damaged: {why}. {remedy}"


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values; safetensors refuses tensors that share memory, and a state may hold one tensor twice."""
    found: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in found else tensor
        found.add(memory)
    return own


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES // 2)).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
