"""Digests of tensors and bytes."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

DIGEST_BYTES = 32
"""Length of a digest, which is hexadecimal."""


PIECE_BYTES = 2**24
"""Of a file that are digested at once."""

One = TypeVar("One")
Other = TypeVar("Other")

Raw = np.ndarray[Any, np.dtype[np.uint8]]


def raw_bytes(tensor: Tensor) -> Raw:
    """The bytes of a tensor, in order; of a contiguous one on the host no copy, but its own memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return np.empty(0, np.uint8)
    own: Raw = flat.view(torch.uint8).numpy()
    return own


def digest(tensor: Tensor) -> str:
    """Digest of a tensor's dtype, shape and bytes."""
    return raw_digest(tensor.dtype, tensor.shape, raw_bytes(tensor))


def raw_digest(dtype: torch.dtype, shape: Sequence[int], raw: Raw) -> str:
    """Digest of a tensor of which only the bytes are there."""
    hasher = hashlib.blake2b(f"{dtype} {tuple(shape)} ".encode(), digest_size=DIGEST_BYTES // 2)
    hasher.update(raw.data)
    return hasher.hexdigest()


def bytes_digest(text: bytes) -> bytes:
    """Digest of bytes."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES // 2).hexdigest().encode()


def file_digest(path: Path) -> str:
    """Digest of a file's bytes: that of the digests of its pieces, which several threads take."""
    size = path.stat().st_size

    def piece(begin: int) -> bytes:
        with path.open("rb") as file:
            file.seek(begin)
            return hashlib.sha256(file.read(PIECE_BYTES)).digest()

    pieces = b"".join(in_threads(piece, range(0, size, PIECE_BYTES), size))
    return hashlib.sha256(size.to_bytes(8, "little") + pieces).hexdigest()[:DIGEST_BYTES]


def file_digest_in_a_row(path: Path) -> str:
    """As before format 10."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES // 2)).hexdigest()


def in_threads(call: Callable[[One], Other], items: Iterable[One], size_bytes: int) -> list[Other]:
    """What a call that hashes gives for each, in order: hashing leaves Python's lock to others.

    Args:
        call: hashes one.
        items: what is hashed.
        size_bytes: of all of them; little is done faster than threads begin.
    """
    given = list(items)
    if len(given) < 2 or size_bytes < PIECE_BYTES:
        return [call(one) for one in given]
    with ThreadPoolExecutor(min(8, len(given), os.cpu_count() or 1)) as pool:
        try:
            begun = [pool.submit(call, one) for one in given]
        except RuntimeError:  # Python ends, and begins no threads any more
            begun = None
    return [call(one) for one in given] if begun is None else [one.result() for one in begun]
