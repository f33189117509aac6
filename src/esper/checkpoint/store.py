"""One checkpoint directory: up to two generations, each written whole or not at all.

A generation is a folder ``<number>`` with ``tensors.safetensors``, a file of each part of the state that lies on disk
already, and ``manifest.json`` (:mod:`esper.checkpoint.manifest`). It is written under another name, flushed, read back
from the disk and compared with what was to be written, and renamed; a reader never sees a half one. What cannot be
trusted is passed over for the generation before it.

Little is written twice: a part that the generation which goes has too is a hard link to its file, where links are
supported, so that the two generations that stay share no byte; and a tensor whose bytes are in one of the parts, or in
another tensor, is only named.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.checkpoint.digests import PIECE_BYTES, digest, file_digest, file_digest_in_a_row, in_threads, raw_bytes
from esper.checkpoint.manifest import FORMAT, NAME, TENSORS, DamageError, Manifest, regular
from esper.checkpoint.packed import Packed
from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError

GENERATIONS = 2

_NUMBERS = count()
_PASSED_OVER: set[Path] = set()
"""Generations that were found damaged."""

_ENVIRONMENT = frozenset((errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors of a system that does not let one read, and not of what is there."""

MOST_TIMES, MOST_MORE_BYTES = 100, 2**30
"""Tensors that are named once more may take so many times the bytes of the files, and so many besides."""


class Saved(NamedTuple):
    """What was read.

    Args:
        state: the nested state.
        format: in which it was written.
        folder: of the generation.
    """

    state: Any
    format: int
    folder: Path


class Prepared(NamedTuple):
    """A state that is to be written.

    Args:
        structure: as :func:`esper.checkpoint.tree.flatten` gives it; a copy of all that is no tensor.
        tensors: by their names.
        apart: parts that lie on disk, by the names of their files.
    """

    structure: Any
    tensors: dict[str, Tensor]
    apart: dict[str, Packed]

    @classmethod
    def of(cls, tree: Any) -> "Prepared":
        """Of a nested state.

        Raises:
            CheckpointError: if it holds what cannot be stored.
        """
        apart: dict[str, Packed] = {}
        structure, tensors = flatten(tree, apart)
        return cls(structure, tensors, apart)

    def on_host(self) -> "Prepared":
        """The same, with tensors on the host; what is there already is not copied."""
        return self._replace(tensors={name: tensor.to("cpu") for name, tensor in self.tensors.items()})

    def held(self) -> "Prepared":
        """A copy on the host, which stays as it is while the run goes on."""
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return Prepared(self.structure, copies, {name: part.held() for name, part in self.apart.items()})


def write(directory: Path, tree: Any, at_least: int = 1) -> Path:
    """Store a nested state, as :func:`write_prepared` does.

    Raises:
        CheckpointError: if it holds what cannot be stored.
    """
    return write_prepared(directory, Prepared.of(tree).on_host(), at_least)


def next_number(directory: Path) -> int:
    """Of the generation that would be written next."""
    existing = _generations(directory)
    return (int(existing[-1].name) if existing else 0) + 1


def write_prepared(directory: Path, prepared: Prepared, at_least: int = 1) -> Path:
    """Store a state, whose tensors are on the host, as the newest generation of ``directory``.

    Args:
        directory: of the checkpoint.
        prepared: the state.
        at_least: number that its generation has, unless there is a newer one already.

    Returns:
        The generation's folder. Only the newest ``GENERATIONS`` are kept.

    Raises:
        OSError: if it cannot be written, or what was written is not on the disk; the generations that are there stay.
    """
    structure, tensors, apart = prepared
    size = sum(tensor.nbytes for tensor in tensors.values())
    digests = dict(zip(tensors, in_threads(digest, tensors.values(), size), strict=True))
    elsewhere = _elsewhere(digests, apart)
    _make(directory)
    existing = _generations(directory)
    trusted = [one for one in existing if one not in _PASSED_OVER]
    going = [one for one in existing if one not in trusted[len(trusted) + 1 - GENERATIONS :]]
    generation = max(next_number(directory), at_least)
    target = directory / f"{generation:06d}"
    unfinished = directory / f".{target.name}.{os.getpid()}.{next(_NUMBERS)}"
    unfinished.mkdir()
    own = {name: tensor for name, tensor in tensors.items() if name not in elsewhere}
    try:
        copied = _write_files(unfinished, own, apart, _parts(going[-1]) if going else {})
        for file in unfinished.iterdir():
            _flush(file, is_read_again=True)
        _compare(unfinished, own, copied)
        manifest = Manifest(
            format=FORMAT,
            generation=generation,
            structure=structure,
            digests=digests,
            elsewhere=elsewhere,
            file_digest=file_digest(unfinished / TENSORS),
            apart={name: part.seal for name, part in apart.items()},
            tensors={name: _kind(tensor) for name, tensor in tensors.items()},
        )
        (unfinished / NAME).write_bytes(manifest.to_bytes())
        for file in (unfinished / NAME, unfinished):
            _flush(file)
        unfinished.rename(target)
        _PASSED_OVER.discard(target)  # another of that name, long ago
    except BaseException:  # what is half done takes room on a disk that may be full
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _flush(directory)
    for old in going:
        old.rename(directory / f".{old.name}.old")  # at once: half of one would pass for a generation
    for leftover in directory.glob(".[0-9]*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def _write_files(
    folder: Path, tensors: dict[str, Tensor], apart: dict[str, Packed], stored: dict[tuple[str, int], Path]
) -> list[str]:
    """Tensors, and parts, of which some may be stored already; the parts that were not linked."""
    copied = []
    try:
        save_file(_unshared(tensors), folder / TENSORS)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{folder / TENSORS} cannot be written: {error}") from error
    for name, part in apart.items():
        key = part.seal, part.size_bytes
        if key not in stored or not _is_whole(stored[key]) or not link(stored[key], folder / name):
            part.copy_to(folder / name)
            copied.append(name)
        stored[key] = folder / name
    return copied


def size_bytes(generation: Path) -> int:
    """Of a generation's files, those that it shares with others among them."""
    return sum(file.stat().st_size for file in generation.iterdir())


def read(directory: Path) -> Any:
    """The state that :func:`read_saved` gives, of whatever format."""
    return read_saved(directory).state


def read_saved(directory: Path) -> Saved:
    """A checkpoint directory's newest generation that is whole, or the generation that is named.

    What was on disk when it was written is only checked, and stays there. A warning tells of each damaged generation
    that was passed over.

    Raises:
        CheckpointError: if there is none, no byte of which differs from what was written; or the newest has a format
            that this version does not read: an older one is never taken in its place.
    """
    *others, latest = _candidates(directory)
    told = ""
    for folder in (latest, *reversed(others)):
        try:
            saved = _read_generation(folder)
        except (OSError, ValueError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
                raise CheckpointError(f"The checkpoint {folder} cannot be read: {error}.") from error
            _PASSED_OVER.add(folder)
            told += f"The checkpoint {folder} is damaged: {error}. "
        else:
            if told:
                warnings.warn(f"{told}In its place {folder} is taken, which is older.", RuntimeWarning, stacklevel=2)
            return saved
    raise CheckpointError(f"{told}{_remedy(directory, latest)}")


def _read_generation(folder: Path) -> Saved:
    """One that is whole.

    Raises:
        CheckpointError: if it has a format that this version does not read, or holds what nobody has damaged and this
            version does not understand.
        OSError, ValueError, SafetensorError: if it is damaged.
    """
    manifest = Manifest.read(folder)
    apart = {name: Packed.at(regular(folder / name)) for name in manifest.apart}
    for name, part in apart.items():
        part.check()
        if part.seal != manifest.apart[name]:
            raise DamageError(f"{name} does not match its digest")
    path, digested = regular(folder / TENSORS), file_digest if manifest.format >= 10 else file_digest_in_a_row
    is_whole = digested(path) == manifest.file_digest
    # cloned: where a file puts a tensor decides its alignment, and unaligned batches sum in another order
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    try:
        tensors |= _from_elsewhere(manifest.elsewhere, tensors, apart)
    except KeyError as error:
        raise DamageError(f"there is no tensor {error}") from error
    if not is_whole or tensors.keys() != manifest.digests.keys():
        for name in sorted(manifest.digests.keys() | tensors.keys()):
            if name not in tensors or digest(tensors[name]) != manifest.digests.get(name):
                raise DamageError(f"{name.lstrip('.')} does not match its digest")
        raise DamageError(f"{TENSORS} does not match its digest")  # a True that was 1 and now is 33
    if strange := [name for name, told in manifest.tensors.items() if told != _kind(tensors[name])]:
        raise DamageError(f"{strange[0].lstrip('.')} has another dtype or shape than the manifest tells")
    return Saved(unflatten(manifest.structure, tensors, apart), manifest.format, folder)


def _kind(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _candidates(directory: Path) -> list[Path]:
    """Generations, the newest last; of the folder of a generation, that one.

    Raises:
        CheckpointError: if there is none.
    """
    if (directory / NAME).exists():
        return [directory]
    if generations := _generations(directory):
        return generations
    raise CheckpointError(f"There is no checkpoint in {directory}.")


def _generations(directory: Path) -> list[Path]:
    found = (path for path in directory.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def _remedy(directory: Path, latest: Path) -> str:
    others = [other.name for other in _generations(latest.parent) if other != latest] if directory == latest else []
    return f"Another generation may be whole: load {latest.parent / others[-1]}." if others else "Start anew."


def _make(directory: Path) -> None:
    """A folder, and that it is there, on the disk."""
    absent = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for one in absent:
        _flush(one.parent)


def _compare(folder: Path, tensors: dict[str, Tensor], parts: Iterable[str]) -> None:
    """Look whether the files hold what was to be written, without a second copy of it in memory.

    Raises:
        OSError: if they do not.
    """
    try:
        with (folder / TENSORS).open("rb") as file:  # read, not mapped: what a disk cannot read is a signal there
            begin = 8 + int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(begin - 8))
            for name, tensor in tensors.items():
                file.seek(begin + entries[name]["data_offsets"][0])
                if entries[name]["shape"] != list(tensor.shape) or not _is_same(tensor, file):
                    raise DamageError(f"{name.lstrip('.')} is another")
        for name in parts:
            Packed.at(folder / name).check()
    except (LookupError, ValueError) as error:
        raise OSError(f"what was written to {folder} cannot be read back: {error}") from error


def _is_same(tensor: Tensor, file: IO[bytes]) -> bool:
    raw = raw_bytes(tensor)
    pieces = (raw[at : at + PIECE_BYTES] for at in range(0, len(raw), PIECE_BYTES))
    return all(np.array_equal(piece, np.frombuffer(file.read(len(piece)), np.uint8)) for piece in pieces)


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
    sizes = {(TENSORS, name): tensor.nbytes for name, tensor in tensors.items()}
    sizes |= {(file, name): size for file, part in apart.items() for name, size in part.sizes().items()}
    asked = sum(sizes.get((file, name), 0) for file, name in elsewhere.values())
    if asked > MOST_TIMES * sum(sizes.values()) + MOST_MORE_BYTES:
        raise DamageError(f"tensors that are named once more would take {asked} bytes")
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
        with suppress(OSError, ValueError):
            part = Packed.at(regular(path))
            found[part.seal, part.size_bytes] = path
    return found


def _is_whole(path: Path) -> bool:
    try:
        Packed.at(regular(path)).check()
    except (OSError, ValueError):
        return False
    return True


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


def _flush(path: Path, *, is_read_again: bool = False) -> None:
    """Wait until a file or a folder is on the disk; what is read again then comes from there, where the system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if is_read_again and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
