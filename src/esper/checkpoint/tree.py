"""A nested state (dicts, lists, tensors, numbers ...) as JSON beside a flat table of tensors, and back, exactly."""

import base64
import copy
import importlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import CheckpointError
from esper.shards import Shard, is_sharded, shard_of

Json = Any

DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32}
    | {torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
    | {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
)
"""What safetensors can hold."""

_OF_TRANSFORMERS = frozenset({"BatchEncoding", "BatchFeature"})
"""What its tokenizers and processors make: mappings that come back as what they are, by name from this list alone."""


_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}
_BY_NAME: dict[str, Callable[[Any], Any]] = {name: one for one, name in (_MAPPINGS | _SEQUENCES).items()}
_FACTORIES: dict[str, Callable[[], Any]] = {one.__name__: one for one in (dict, list, set, int, float, bool, str)}
"""What a ``defaultdict`` may make, by name."""

_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a structure that nobody has written by :func:`flatten` makes the reader raise."""


class Apart:
    """A part of a nested state that is stored apart from it."""

    def held(self) -> Self:
        """The same part, which stays as it is now, whatever this one becomes."""
        raise NotImplementedError


def flatten(tree: Any, apart: dict[str, Any] | None = None) -> tuple[Json, dict[str, Tensor]]:
    """Split a nested state into a JSON value and its tensors.

    Args:
        tree: dicts with keys of any plain type, those of ``collections``, lists, tuples, sets, tensors (dense or sparse
            COO), shards, numpy arrays and scalars, numbers, strings, bytes, dtypes, devices, None, batches of
            transformers. Each comes back as what it is; numpy scalars become plain numbers, and a parameter a tensor.
        apart: takes the :class:`Apart` parts, by names; None refuses them.

    Returns:
        The structure, and the tensors by their path in the tree.

    Raises:
        CheckpointError: if it holds anything else.
    """
    flattened = _Flattened(apart)
    try:
        return flattened.encode(tree, ""), flattened.tensors
    except RecursionError as error:
        raise CheckpointError("A state_dict is nested too deeply to be stored, or holds itself.") from error


class _Flattened:
    """Encodes a nested state. No closure over what it gathers: that would be a cycle, which lives on for a while."""

    def __init__(self, apart: dict[str, Any] | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._apart = apart

    def encode(self, value: Any, path: str) -> Json:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Shard):
            return {"shard": [self.encode(part, path) for part in (value.local, value.dim, value.shape)]}
        if isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in DTYPES:
            name = self._store(value.detach().contiguous(), path)
            return {"tensor": name} if value.device.type == "cpu" else {"tensor_on": [str(value.device), name]}
        if isinstance(value, Tensor) and value.layout is torch.sparse_coo:
            inner, own = value.detach(), (tuple(value.shape), value.is_coalesced())
            return {"sparse": [self.encode(part, f"{path}.coo") for part in (inner._indices(), inner._values(), *own)]}
        if isinstance(value, np.ndarray) and getattr(torch, value.dtype.name, None) in DTYPES:
            native = np.array(value, dtype=value.dtype.name, order="C")
            return {"array": self._store(torch.from_numpy(native), path)}
        if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
            return self.encode(value.item(), path)
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, Apart) and self._apart is not None:
            return {"apart": self._set_apart(value, self._apart)}
        if type(value) in _MAPPINGS:
            return {_MAPPINGS[type(value)]: self._items(value, path)}
        if type(value) is defaultdict and (factory := _factory_name(value)) is not None:
            return {"default": [factory, self._items(value, path)]}
        if _is_of_transformers(value):
            return {"transformers": [type(value).__name__, self.encode(dict(value), path)]}
        if type(value) in _SEQUENCES:
            return {_SEQUENCES[type(value)]: [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]}
        if type(value) is deque:
            return {"deque": [value.maxlen, [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]]}
        if type(value) is complex:
            return {"complex": [value.real, value.imag]}
        if isinstance(value, torch.dtype | torch.device):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        raise CheckpointError(
            f"{path.lstrip('.')} is a {_kind(value)}, which cannot be stored. A state_dict must hold tensors, dense or "
            "sparse (COO), numbers, strings and containers of them."
        )

    def _items(self, value: Mapping[Any, Any], path: str) -> Json:
        return [[self.encode(k, f"{path}.key"), self.encode(v, f"{path}.{k}")] for k, v in value.items()]

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


def unflatten(
    structure: Json,
    tensors: Mapping[str, Tensor],
    apart: Mapping[str, Any] = MappingProxyType({}),
    device: torch.device | None = None,
) -> Any:
    """Inverse of :func:`flatten`.

    Args:
        structure: as that gives it.
        tensors: likewise.
        apart: likewise.
        device: where tensors come that were not on the host; None is where they were.

    Raises:
        CheckpointError: if the structure is none that :func:`flatten` gives, or names what is not there.
    """
    try:
        return _Unflattened(tensors, apart, device).decode(structure)
    except torch.OutOfMemoryError:  # of a device: nothing is wrong with the checkpoint
        raise
    except RecursionError as error:
        raise CheckpointError("The checkpoint is nested too deeply to be read.") from error
    except _MISFITS as error:
        raise CheckpointError(f"The checkpoint has a structure that Esper does not write: {error!r}.") from error


class _Unflattened:
    """Decodes a structure. It may come from anywhere: nothing of it is trusted."""

    def __init__(self, tensors: Mapping[str, Tensor], apart: Mapping[str, Any], device: torch.device | None) -> None:
        self._tensors, self._apart, self._device = tensors, apart, device

    def decode(self, structure: Json) -> Any:
        if not isinstance(structure, dict):
            return structure
        ((kind, value),) = structure.items()
        match kind:
            case "tensor":
                return self._tensors[value]
            case "tensor_on":
                return _on_device(self._tensors[value[1]], self._device or torch.device(value[0]))
            case "sparse":
                indices, values, shape, is_coalesced = map(self.decode, value)
                return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=is_coalesced, check_invariants=True)
            case "shard":
                shard = Shard(*map(self.decode, value))
                if not isinstance(shard.local, Tensor) or type(shard.dim) not in (int, type(None)):
                    raise TypeError("a shard is a tensor and a dimension")
                return shard
            case "array":
                return self._tensors[value].numpy()
            case "bytes":
                return base64.b64decode(value)
            case "complex":
                return complex(*value)
            case "dtype":
                return _dtype(value)
            case "device":
                return torch.device(value)
            case "dict" | "ordered" | "counter":
                return _BY_NAME[kind](self._items(value))
            case "default":
                return defaultdict(_FACTORIES[value[0]], self._items(value[1]))
            case "list" | "tuple" | "size" | "set" | "frozenset":
                return _BY_NAME[kind]([self.decode(item) for item in value])
            case "deque":
                return deque(map(self.decode, value[1]), value[0])
            case "apart":
                return self._apart[value]
            case "transformers":
                return _class_of_transformers(value[0])(self.decode(value[1]))
        raise CheckpointError(
            f"Unknown kind of value {kind!r}: the checkpoint was written by a newer version of Esper."
        )

    def _items(self, items: Json) -> dict[Any, Any]:
        return {self.decode(k): self.decode(v) for k, v in items}


def clone(tree: Any) -> Any:
    """A copy on the host that shares no memory with ``tree``. Of tensors that ranks share it has their parts."""
    if is_sharded(tree):
        tree = shard_of(tree)
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        copied = copy.copy(tree)
        for key, value in tree.items():
            copied[key] = clone(value)
        return copied
    if type(tree) is list:
        return [clone(value) for value in tree]
    if isinstance(tree, tuple):
        values = map(clone, tree)
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return copy.deepcopy(tree)


def _is_of_transformers(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ in _OF_TRANSFORMERS and kind.__module__.startswith("transformers.")


def _factory_name(value: "defaultdict[Any, Any]") -> str | None:
    return next((name for name, one in _FACTORIES.items() if one is value.default_factory), None)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch.{name} is no dtype")
    return found


def _class_of_transformers(name: str) -> Any:
    if name not in _OF_TRANSFORMERS:
        raise ValueError(f"{name!r} is none of {', '.join(sorted(_OF_TRANSFORMERS))}")
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise CheckpointError(f"The checkpoint holds a {name}, for which transformers must be installed.") from error


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Where the tensor was; on a machine without such a device, on the host."""
    available = torch.accelerator.current_accelerator()
    is_counted = (device.index or 0) < torch.accelerator.device_count()
    has_device = available is not None and available.type == device.type and is_counted
    return tensor.to(device) if has_device else tensor


def _kind(value: Any) -> str:
    dtype = f" of {value.dtype}" if isinstance(value, Tensor | np.ndarray) else ""
    layout = f" in {value.layout}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{dtype}{layout}"
