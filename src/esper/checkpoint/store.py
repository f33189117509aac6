"""One checkpoint directory: up to two generations, each written whole or not at all.

A generation is a folder ``<number>`` with ``tensors.safetensors``, a file of each part of the state that lies on disk
already, and ``manifest.json``; the manifest is one line with the structure and digests of every tensor and of their
files, and one with the digest of the first. A generation is written under another name, flushed, and renamed; a reader
never sees a half one.

Nothing is written twice: a part that the generation before has too is a hard link to its file, where links are
supported, and a tensor whose bytes are in one of the parts, or in another tensor, is only named.
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

FORMAT = 9
"""Of what is stored; raised by every change after which older versions cannot read it, or older checkpoints not fit."""

READABLE = (6, 7, 8, 9)
"""Formats that can be gone on from. In 6 every tensor is in the first file."""

TENSORS = "tensors.safetensors"

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
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    elsewhere = _elsewhere(digests, apart)
    directory.mkdir(parents=True, exist_ok=True)
    existing = _generations(directory)
    target = directory / f"{(int(existing[-1].name) if existing else 0) + 1:06d}"
    unfinished = directory / f".{target.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    own = {name: tensor for name, tensor in tensors.items() if name not in elsewhere}
    try:
        save_file(_unshared(own), unfinished / TENSORS)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{unfinished / TENSORS} cannot be written: {error}") from error
    stored = _parts(existing[-1]) if existing else {}
    for name, part in apart.items():
        key = part.seal, part.size_bytes
        if key not in stored or not link(stored[key], unfinished / name):
            part.copy_to(unfinished / name)
        stored[key] = unfinished / name
    manifest = {
        "format": FORMAT,
        "structure": structure,
        "digests": digests,
        "elsewhere": elsewhere,
        "file_digest": file_digest(unfinished / TENSORS),
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


def newest(directory: Path) -> Path:
    """The folder of a checkpoint directory's newest generation; that of a generation is its own.

    Raises:
        CheckpointError: if there is none.
    """
    if (directory / "manifest.json").exists():
        return directory
    generations = _generations(directory)
    if not generations:
        raise CheckpointError(f"There is no checkpoint in {directory}.")
    return generations[-1]


def size_bytes(generation: Path) -> int:
    """Of a generation's files, those that it shares with others among them."""
    return sum(file.stat().st_size for file in generation.iterdir())


def read(directory: Path) -> Any:
    """The state that :func:`read_versioned` gives, of whatever format."""
    return read_versioned(directory)[0]


def read_versioned(directory: Path) -> tuple[Any, int]:
    """The nested state of a checkpoint directory's newest generation, or of the generation that is named.

    What was on disk when it was written is only checked, and stays there.

    Returns:
        The state, and the number of the format in which it was written.

    Raises:
        CheckpointError: if there is none, or any byte of it differs from what was written.
    """
    source = newest(directory)
    try:
        text, _, own_digest = (source / "manifest.json").read_bytes().rpartition(b"\n")
        if _bytes_digest(text) != own_digest:
            raise CheckpointError(_damaged(source, "the manifest does not match its digest"))
        manifest = json.loads(text)
        if manifest["format"] not in READABLE:
            raise CheckpointError(
                f"{source} has format {manifest['format']}; this version of Esper reads "
                f"{', '.join(map(str, READABLE[:-1]))} and {FORMAT}. Go on with the version that wrote it, or start "
                "anew."
            )
        # cloned: where a file puts a tensor decides its alignment, and unaligned batches sum in another order
        tensors = {name: tensor.clone() for name, tensor in load_file(source / TENSORS).items()}
        apart = {name: Packed.at(source / name) for name in manifest.get("apart", {})}
        for name, part in apart.items():
            part.check()
            if part.seal != manifest["apart"][name]:
                raise ValueError(f"{name} does not match its digest")
        tensors |= _from_elsewhere(manifest.get("elsewhere", {}), tensors, apart)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(_damaged(source, str(error))) from error
    for name in sorted(manifest["digests"].keys() | tensors.keys()):
        if name not in tensors or digest(tensors[name]) != manifest["digests"].get(name):
            raise CheckpointError(_damaged(source, f"{name.lstrip('.')} does not match its digest"))
    if file_digest(source / TENSORS) != manifest["file_digest"]:  # a True that was 1 and now is 33
        raise CheckpointError(_damaged(source, "tensors.safetensors does not match its digest"))
    return unflatten(manifest["structure"], tensors, apart), manifest["format"]


def _generations(directory: Path) -> list[Path]:
    found = (path for path in directory.glob("[0-9]*") if path.name.isdigit() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def _damaged(source: Path, why: str) -> str:
    others = [other.name for other in _generations(source.parent) if other != source]
    remedy = f"Another generation may be whole: load {source.parent / others[-1]}." if others else "Start anew."
    return f"The checkpoint {source} is damaged: {why}. {remedy}"


def _elsewhere(digests: dict[str, str], apart: dict[str, Packed]) -> dict[str, list[str]]:
    """File and name of tensors whose bytes are stored already, by the name under which they are there once more."""
    places = {found: [part, name] for part in apart for found, name in apart[part].digests().items()}
    elsewhere = {}
    for name, own in digests.items():
        if own in places:
            elsewhere[name] = places[own]
        else:
            places[own] = [TENSORS, name]
    return elsewhere


def _from_elsewhere(
    elsewhere: dict[str, list[str]], tensors: dict[str, Tensor], apart: dict[str, Packed]
) -> dict[str, Tensor]:
    """Inverse of :func:`_elsewhere`: every tensor in memory of its own."""
    found: dict[str, Tensor] = {}
    for file in sorted({file for file, _ in elsewhere.values()}):
        wanted = {name: there for name, (where, there) in elsewhere.items() if where == file}
        if file == TENSORS:
            found |= {name: tensors[there].clone() for name, there in wanted.items()}
        else:
            found |= apart[file].tensors(wanted)
    return found


def _parts(generation: Path) -> dict[tuple[str, int], Path]:
    """Files of parts, by what they say that they hold, and how long they are."""
    found: dict[tuple[str, int], Path] = {}
    for path in generation.glob("apart-*"):
        if path.stat().st_size:  # what is empty cannot be mapped
            part = Packed.at(path)
            found[part.seal, part.size_bytes] = path
    return found


def link(existing: Path, path: Path) -> bool:
    """Give a file a second name; False where that is not supported."""
    try:
        path.hardlink_to(existing)
    except OSError:
        return False
    return True


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values; safetensors refuses tensors that share memory, and a state may hold one tensor twice."""
    found: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in found else tensor
        found.add(memory)
    return own


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES // 2)).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
