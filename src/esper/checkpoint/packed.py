"""A nested state in one file, written and read tensor by tensor, so that no second copy of it lies in memory.

The file has the bytes of all tensors in a row; then, as JSON, the structure and of every tensor its dtype, its shape,
where it begins and its digest; then the digest of that JSON and its length.
"""

import json
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from esper.checkpoint.digests import DIGEST_BYTES, PIECE_BYTES, Raw, bytes_digest, in_threads, raw_bytes, raw_digest
from esper.checkpoint.tree import DTYPES, Apart, flatten, unflatten
from esper.contracts.errors import CheckpointError

LENGTH_BYTES = 8
"""Of the last number in the file."""


class Packed(Apart):
    """A nested state in a file that has no name: it is gone with this object, or with the process, however that ends.

    A process that was forked off can read what its parent has written, and the other way round.

    Args:
        folder: on whose disk the file is; None takes the system's for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._take(self._unnamed())

    @classmethod
    def of(cls, tree: Any, folder: Path | None = None) -> Self:
        """A state put on disk."""
        packed = cls(folder)
        packed.write(tree)
        return packed

    @classmethod
    def at(cls, path: Path) -> Self:
        """The state in a file that :meth:`copy_to` has written; the file stays when this object goes.

        A state that replaces it lies in a new file beside the folder that holds it.
        """
        packed = cls.__new__(cls)
        packed._folder = path.parent.parent
        packed._take(path.open("rb"))
        return packed

    def held(self) -> Self:
        """The state that is in now; one that takes its place later goes into another file."""
        held = type(self).__new__(type(self))
        held._folder = self._folder
        held._take(os.fdopen(os.dup(self._file.fileno()), "rb"))
        return held

    def write(self, tree: Any) -> None:
        """Put the state in, in place of one that is there.

        Raises:
            CheckpointError: if it holds what cannot be stored.
            OSError: if the disk cannot take it; what was there is there still.
        """
        structure, tensors = flatten(tree)
        is_taken = not self._file.writable() or self._file.seek(0, os.SEEK_END) > 0
        file = self._unnamed() if is_taken else self._file
        try:
            _write(file, structure, tensors)
        except OSError:
            with suppress(OSError):  # closing it tries to write what is left
                file.close()
            raise
        if is_taken:
            self._close()
            self._take(file)

    def read(self) -> Any:
        """The state, in memory of its own.

        Raises:
            CheckpointError: if any byte differs from what was written.
        """
        with _damage_told():
            view = self._mapped()
            structure, entries = _listed(view)
            return unflatten(structure, _read(view, entries))

    def check(self) -> None:
        """Look whether every byte is what was written, without reading the state into memory.

        Raises:
            OSError, ValueError: if one is not.
        """
        at = 0  # what a disk cannot read is an error here, and a signal below
        while piece := os.pread(self._file.fileno(), PIECE_BYTES, at):
            at += len(piece)
        view = self._mapped()
        _check(view, _listed(view)[1])

    def digests(self) -> dict[str, str]:
        """Name of every tensor, by its digest.

        Raises:
            CheckpointError: if the list of tensors is not what was written.
        """
        with _damage_told():
            return {entry.digest: name for name, entry in _listed(self._mapped())[1].items()}

    def sizes(self) -> dict[str, int]:
        """Bytes of every tensor, by its name.

        Raises:
            CheckpointError: if the list of tensors is not what was written.
        """
        with _damage_told():
            return {name: entry.size for name, entry in _listed(self._mapped())[1].items()}

    def tensors(self, wanted: dict[str, str]) -> dict[str, Tensor]:
        """Some of the tensors under other names, each in memory of its own.

        Args:
            wanted: name here, by the new name.

        Raises:
            KeyError, OSError, ValueError: if one is not there, or a byte of it is not what was written.
        """
        view = self._mapped()
        entries = _listed(view)[1]
        return _read(view, {name: entries[there] for name, there in wanted.items()})

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return len(self._mapped())

    @property
    def seal(self) -> str:
        """Tells this state from others: a digest of its structure and of the digests of its tensors."""
        return bytes(self._mapped()[-DIGEST_BYTES - LENGTH_BYTES : -LENGTH_BYTES]).decode(errors="replace")

    def copy_to(self, path: Path) -> None:
        """Write the file under a name."""
        with path.open("wb") as target:
            target.write(self._mapped())

    def _unnamed(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)

    def _take(self, file: IO[bytes]) -> None:
        self._file = file
        self._close = weakref.finalize(self, file.close)

    def _mapped(self) -> memoryview:
        """The bytes of the file; read in this way, no two processes move each other's position in it."""
        return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        remedy = "Go on from the last checkpoint."
        raise CheckpointError(f"A state of the run that was put on disk is damaged: {error}. {remedy}") from error


def _write(file: IO[bytes], structure: Any, tensors: dict[str, Tensor]) -> None:
    entries, begin = {}, 0
    for name, tensor in tensors.items():
        raw, dtype = raw_bytes(tensor), str(tensor.dtype).removeprefix("torch.")
        entries[name] = [dtype, list(tensor.shape), begin, raw_digest(tensor.dtype, tensor.shape, raw)]
        begin += file.write(raw.data)
    text = json.dumps({"structure": structure, "tensors": entries}).encode()
    file.write(text + bytes_digest(text) + len(text).to_bytes(LENGTH_BYTES, "little"))
    file.flush()


def _listed(view: memoryview) -> tuple[Any, dict[str, "_Entry"]]:
    """The structure, and what is told of the tensors, which lie one after the other."""
    end = len(view) - LENGTH_BYTES - DIGEST_BYTES
    begin = end - int.from_bytes(view[end + DIGEST_BYTES :], "little")
    if begin < 0 or bytes_digest(bytes(view[begin:end])) != bytes(view[end : end + DIGEST_BYTES]):
        raise ValueError("its list of tensors does not match its digest")
    try:
        listed = json.loads(bytes(view[begin:end]))
        structure, entries = listed["structure"], {name: _Entry.of(*one) for name, one in listed["tensors"].items()}
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"its list of tensors is none that Esper writes: {error!r}") from error
    at = 0
    for name, entry in entries.items():
        if entry.begin != at:
            raise ValueError(f"{name.lstrip('.')} does not begin where the one before it ends")
        at += entry.size
    if at != begin:
        raise ValueError(f"it has {begin} bytes of tensors, not {at}")
    return structure, entries


class _Entry(NamedTuple):
    """Of a tensor."""

    dtype: torch.dtype
    shape: list[int]
    begin: int
    digest: str

    @classmethod
    def of(cls, dtype_name: str, shape: list[int], begin: int, digest: str) -> Self:
        dtype = getattr(torch, dtype_name)
        is_shape = all(type(one) is int and one >= 0 for one in shape)
        if dtype not in DTYPES or not is_shape or math.prod(one or 1 for one in shape) >= 2**60:
            raise ValueError(f"a tensor of {dtype_name} and shape {shape} is none")
        return cls(dtype, shape, begin, digest)

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read(view: memoryview, entries: dict[str, _Entry]) -> dict[str, Tensor]:
    _check(view, entries)
    tensors = {}
    for name, entry in entries.items():
        tensors[name] = torch.empty(entry.shape, dtype=entry.dtype)
        raw_bytes(tensors[name])[:] = _raw(view, entry)
    return tensors


def _check(view: memoryview, entries: dict[str, _Entry]) -> None:
    """Compare the bytes of every tensor with its digest."""

    def is_whole(entry: _Entry) -> bool:
        return raw_digest(entry.dtype, entry.shape, _raw(view, entry)) == entry.digest

    for name, whole in zip(entries, in_threads(is_whole, entries.values(), len(view)), strict=True):
        if not whole:
            raise ValueError(f"{name.lstrip('.')} does not match its digest")


def _raw(view: memoryview, entry: _Entry) -> Raw:
    return np.frombuffer(view[entry.begin : entry.begin + entry.size], np.uint8)
