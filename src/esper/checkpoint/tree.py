"""A nested state (dicts, lists, tensors, numbers ...) as JSON beside a flat table of tensors, and back, exactly."""

import base64
import copy
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import CheckpointError

Json = Any

_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32}
    | {torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
    | {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
)
"""What safetensors can hold."""

_OF_TRANSFORMERS = frozenset({"BatchEncoding", "BatchFeature"})
"""What its tokenizers and processors make: mappings that come back as what they are, by name from this list alone."""


class Apart:
    """A part of a nested state that is stored apart from it."""


def flatten(tree: Any, apart: dict[str, Any] | None = None) -> tuple[Json, dict[str, Tensor]]:
    """Split a nested state into a JSON value and its tensors.

    Args:
        tree: dicts with keys of any plain type, lists, tuples, sets, tensors (dense or sparse COO), numpy arrays and
            scalars, numbers, strings, bytes, None, batches of transformers.
        apart: takes the :class:`Apart` parts, by names; None refuses them.

    Returns:
        The structure, and the tensors by their path in the tree.

    Raises:
        CheckpointError: if it holds anything else.
    """
    flattened = _Flattened(apart)
    return flattened.encode(tree, ""), flattened.tensors


class _Flattened:
    """Encodes a nested state. No closure over what it gathers: that would be a cycle, which lives on for a while."""

    def __init__(self, apart: dict[str, Any] | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._apart = apart

    def encode(self, value: Any, path: str) -> Json:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in _DTYPES:
            name = self._store(value.detach().contiguous(), path)
            return {"tensor": name} if value.device.type == "cpu" else {"tensor_on": [str(value.device), name]}
        if isinstance(value, Tensor) and value.layout is torch.sparse_coo:
            inner, own = value.detach(), (tuple(value.shape), value.is_coalesced())
            return {"sparse": [self.encode(part, f"{path}.coo") for part in (inner._indices(), inner._values(), *own)]}
        if isinstance(value, np.ndarray) and getattr(torch, value.dtype.name, None) in _DTYPES:
            native = np.array(value, dtype=value.dtype.name, order="C")
            return {"array": self._store(torch.from_numpy(native), path)}
        if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
            return self.encode(value.item(), path)
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, Apart) and self._apart is not None:
            return {"apart": self._set_apart(value, self._apart)}
        if isinstance(value, dict):
            return {"dict": [[self.encode(k, f"{path}.key"), self.encode(v, f"{path}.{k}")] for k, v in value.items()]}
        if _is_of_transformers(value):
            return {"transformers": [type(value).__name__, self.encode(dict(value), path)]}
        if isinstance(value, list | tuple | set | frozenset):
            kind = "list" if isinstance(value, list) else "tuple" if isinstance(value, tuple) else "set"
            return {kind: [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]}
        raise CheckpointError(
            f"{path.lstrip('.')} is a {_kind(value)}, which cannot be stored. A state_dict must hold tensors, dense or "
            "sparse (COO), numbers, strings and containers of them."
        )

    def _store(self, tensor: Tensor, path: str) -> str:
        while path in self.tensors:  # {"a.b": x, "a": {"b": y}} has one path twice
            path += "'"
        self.tensors[path] = tensor
        return path

    @staticmethod
    def _set_apart(value: Apart, apart: dict[str, Any]) -> str:
        known = (name for name, part in apart.items() if part is value)
        name = next(known, f"apart-{len(apart) + 1}")
        apart[name] = value
        return name


def unflatten(structure: Json, tensors: dict[str, Tensor], apart: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Inverse of :func:`flatten`."""
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "tensor_on":
            return _on_device(tensors[value[1]], torch.device(value[0]))
        case "sparse":
            indices, values, shape, is_coalesced = (unflatten(part, tensors) for part in value)
            return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=is_coalesced, check_invariants=False)
        case "array":
            return tensors[value].numpy()
        case "bytes":
            return base64.b64decode(value)
        case "dict":
            return {unflatten(k, tensors): unflatten(v, tensors, apart) for k, v in value}
        case "list":
            return [unflatten(item, tensors, apart) for item in value]
        case "tuple":
            return tuple(unflatten(item, tensors, apart) for item in value)
        case "set":
            return {unflatten(item, tensors) for item in value}
        case "apart":
            return apart[value]
        case "transformers" if value[0] in _OF_TRANSFORMERS:
            return _class_of_transformers(value[0])(unflatten(value[1], tensors, apart))
    raise CheckpointError(f"Unknown kind of value {kind!r}: the checkpoint was written by a newer version of Esper.")


def clone(tree: Any) -> Any:
    """A copy on the host that shares no memory with ``tree``."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: clone(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [clone(value) for value in tree]
    if isinstance(tree, tuple):
        return tuple(clone(value) for value in tree)
    return copy.deepcopy(tree)


def _is_of_transformers(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ in _OF_TRANSFORMERS and kind.__module__.startswith("transformers.")


def _class_of_transformers(name: str) -> Any:
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise CheckpointError(f"The checkpoint holds a {name}, for which transformers must be installed.") from error


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Where the tensor was; on a machine without such a device, on the host."""
    available = torch.accelerator.current_accelerator()
    has_device = available is not None and available.type == device.type
    return tensor.to(device) if has_device else tensor


def _kind(value: Any) -> str:
    dtype = f" of {value.dtype}" if isinstance(value, Tensor | np.ndarray) else ""
    layout = f" in {value.layout}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{dtype}{layout}"
