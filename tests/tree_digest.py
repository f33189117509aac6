"""Digest of a nested state, by which tests compare runs to the byte."""

import hashlib
import json
from typing import Any

from esper.checkpoint.digests import digest
from esper.checkpoint.tree import flatten


def tree_digest(tree: Any) -> str:
    """Of structure and bytes."""
    structure, tensors = flatten(tree)
    parts = (f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("\n".join([json.dumps(structure), *parts]).encode()).hexdigest()
