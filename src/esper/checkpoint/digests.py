"""Digests of tensors and bytes."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGEST_BYTES = 32
"""Length of a digest, which is hexadecimal."""


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
