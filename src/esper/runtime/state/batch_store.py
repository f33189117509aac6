"""Batches that are needed once more, within a bound of memory.

They stay in memory as they are up to the bound; what comes after that goes to disk, in blocks. Where the loader can
draw a batch again by its index, only the index is remembered, and checksums: another batch is not taken for it.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_structure, tree_unflatten

from esper.checkpoint.digests import raw_bytes
from esper.checkpoint.packed import Packed
from esper.contracts.errors import CheckpointError, EsperError
from esper.runtime.state.batches import laid, num_bytes, strides_of

BLOCKS = 8
"""A block on disk has an eighth of the bound: one is gathered, and one that was read again is kept, beside the rest."""


class ReplayError(EsperError):
    """A step that was taken once more, or its batch, was not what it was in the run."""


@runtime_checkable
class DrawsAgain(Protocol):
    """A loader that gives any batch again by its index."""

    @property
    def last_index(self) -> int | None:
        """Of the batch that was handed out last; None before the first."""

    def batch_at(self, index: int) -> Any:
        """That batch, with the same values, wherever the loader stands; it stays where it is."""


class _Held(NamedTuple):
    batch: Any


class _Drawn(NamedTuple):
    number: int
    checksums: tuple[int, ...]


class _OnDisk(NamedTuple):
    block: int
    position: int
    form: "_Form"


class _Form(NamedTuple):
    """How a batch is put together from its leaves: its containers, and the strides of its tensors."""

    structure: TreeSpec
    strides: tuple[tuple[int, ...] | None, ...]

    def shown(self) -> dict[str, Any]:
        """As plain values."""
        return {"like": tree_unflatten(range(len(self.strides)), self.structure), "strides": self.strides}

    @classmethod
    def of(cls, shown: dict[str, Any]) -> "_Form":
        """Inverse of :meth:`shown`."""
        return cls(tree_structure(shown["like"]), tuple(shown["strides"]))


class BatchStore(Sequence[Any]):
    """Batches in the order in which they came.

    Args:
        max_bytes: that may lie in memory, on host and devices together.
        folder: on whose disk blocks lie; None takes the system's for temporary files.
        loader: where batches come from, if it is known.
        tell: called with a text where the bound cannot be kept.
    """

    def __init__(self, max_bytes: int, folder: Path | None, loader: Any, tell: Callable[[str], None]) -> None:
        self._max_bytes, self._folder, self._tell = max_bytes, folder, tell
        self._loader = loader if isinstance(loader, DrawsAgain) else None
        self._entries: list[_Held | _Drawn | _OnDisk] = []
        self._blocks: list[Packed] = []
        self._held_bytes = self._gathered_bytes = 0
        self._gathered: list[int] = []  # entries that the next block will take
        self._read: tuple[int, list[Any]] | None = None  # the block that was read last
        self._is_checked = False
        self._is_bounded = True

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One batch, or several; those that are in memory are given as they are, and not to be edited.

        Raises:
            ReplayError: if the loader has drawn another batch than it did in the run.
        """
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        match self._entries[index]:
            case _Held(batch):
                return batch
            case _Drawn(number, checksums):
                assert self._loader is not None
                batch = self._loader.batch_at(number)
                if checksums and checksums != _checksums(batch):
                    raise ReplayError(
                        f"the loader's batch_at({number}) gave another batch than the run was trained on. It must give "
                        "the same values every time; without batch_at and last_index batches are remembered instead"
                    )
                return batch
            case _OnDisk(block, position, form):
                return _joined(self._leaves_of(block)[position], form)

    def add(self, batch: Any) -> None:
        """Remember one more. It must be the store's own from now on, as :func:`copy_of` makes it."""
        index = self._drawn_again(batch)
        if index is not None:
            self._entries.append(_Drawn(index, _checksums(batch)))
            return
        size = num_bytes(batch)
        self._entries.append(_Held(batch))
        block = self._max_bytes // BLOCKS
        if self._held_bytes + size <= self._max_bytes - 2 * block or not self._is_bounded:
            self._held_bytes += size
            return
        self._gathered.append(len(self) - 1)
        self._gathered_bytes += size
        if self._gathered_bytes >= block:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """All of it; blocks stay on disk."""
        forms: dict[_Form, int] = {}
        entries: list[dict[str, Any]] = []
        for entry in self._entries:
            match entry:
                case _Drawn(number, checksums):
                    entries.append({"index": number, "checksums": checksums})
                case _Held(batch):
                    leaves, form = _taken_apart(batch)
                    entries.append({"leaves": leaves, "form": forms.setdefault(form, len(forms))})
                case _OnDisk(block, position, form):
                    where = {"block": block, "position": position}
                    entries.append(where | {"form": forms.setdefault(form, len(forms))})
        return {"entries": entries, "forms": [form.shown() for form in forms], "blocks": self._blocks}

    def load_state_dict(self, state: dict[str, Any] | list[Any]) -> None:
        """Inverse of :meth:`state_dict`; checkpoints of before had the batches themselves.

        Raises:
            CheckpointError: if the loader is needed to draw batches again, and cannot.
        """
        if isinstance(state, list):
            for batch in state:
                self.add(batch)
            return
        forms = [_Form.of(one) for one in state["forms"]]
        self._blocks = list(state["blocks"])
        for entry in state["entries"]:
            if "index" in entry:
                if self._loader is None:
                    raise CheckpointError(
                        "The checkpoint knows batches by their index only. Give Session the loader that it was saved "
                        "with; it must have batch_at and last_index."
                    )
                self._entries.append(_Drawn(entry["index"], tuple(entry.get("checksums", ()))))
            elif "block" in entry:
                self._entries.append(_OnDisk(entry["block"], entry["position"], forms[entry["form"]]))
            else:
                self._entries.append(_Held(_joined(entry["leaves"], forms[entry["form"]])))
                self._held_bytes += num_bytes(self[-1])

    def _drawn_again(self, batch: Any) -> int | None:
        """The index of a batch, if the loader gives it again for certain.

        On a device only the first is compared: comparing waits for it.
        """
        index = None if self._loader is None else self._loader.last_index
        if index is None:
            return None
        assert self._loader is not None
        is_cheap = all(not isinstance(leaf, Tensor) or leaf.device.type == "cpu" for leaf in tree_flatten(batch)[0])
        if (is_cheap or not self._is_checked) and not _are_equal(batch, self._loader.batch_at(index)):
            self._loader = self._loader if any(isinstance(one, _Drawn) for one in self._entries) else None
            return None
        self._is_checked = True
        return index

    def _write(self) -> None:
        """Put what was gathered on disk."""
        apart = [_taken_apart(self[index]) for index in self._gathered]
        try:
            self._blocks.append(Packed.of([leaves for leaves, _ in apart], self._folder))
        except (CheckpointError, OSError) as error:
            self._is_bounded = False
            self._held_bytes += self._gathered_bytes
            self._tell(f"Batches are kept in memory beyond max_batch_bytes: they could not be put on disk ({error}).")
        else:
            for position, (index, (_, form)) in enumerate(zip(self._gathered, apart, strict=True)):
                self._entries[index] = _OnDisk(len(self._blocks) - 1, position, form)
        self._gathered, self._gathered_bytes = [], 0

    def _leaves_of(self, block: int) -> list[Any]:
        if self._read is None or self._read[0] != block:
            self._read = None  # one at a time
            self._read = block, self._blocks[block].read()
        return self._read[1]


def taken_apart(batch: Any) -> dict[str, Any]:
    """A batch as a nested state, with which :func:`put_together` makes it again in another process."""
    leaves, form = _taken_apart(batch)
    return {"leaves": leaves, **form.shown()}


def put_together(saved: dict[str, Any]) -> Any:
    """Inverse of :func:`taken_apart`."""
    return _joined(saved["leaves"], _Form.of(saved))


class LatestBatches:
    """The batches that came last.

    Args:
        count: how many at most.
        max_bytes: that they may take; the newest stays in any case.
    """

    def __init__(self, count: int, max_bytes: int) -> None:
        self._count, self._max_bytes = count, max_bytes
        self._batches: deque[tuple[Any, int]] = deque()
        self._bytes = 0

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _ in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Any) -> None:
        """One more."""
        size = num_bytes(batch)
        self._batches.append((batch, size))
        self._bytes += size
        while len(self) > self._count or (len(self) > 1 and self._bytes > self._max_bytes):
            self._bytes -= self._batches.popleft()[1]

    def clear(self) -> None:
        """Forget all."""
        self._batches.clear()
        self._bytes = 0


def _taken_apart(batch: Any) -> tuple[list[Any], _Form]:
    leaves, structure = tree_flatten(batch)
    return leaves, _Form(structure, tuple(map(strides_of, leaves)))


def _joined(leaves: Sequence[Any], form: _Form) -> Any:
    return tree_unflatten((laid(*pair) for pair in zip(leaves, form.strides, strict=True)), form.structure)


def _checksums(batch: Any) -> tuple[int, ...]:
    """Of the tensors of a batch that are on the host: reading others would wait for the device.

    16 MB take 2 ms; a cryptographic digest takes five times as long.
    """
    leaves = tree_flatten(batch)[0]
    return tuple(_checksum(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cpu")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(raw_bytes(tensor).data, zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode()))


def _are_equal(batch: Any, other: Any) -> bool:
    """Whether two batches have the same bytes, laid in the same way."""
    (leaves, structure), (others, its_structure) = tree_flatten(batch), tree_flatten(other)
    if structure != its_structure:
        return False
    return all(_is_equal(leaf, twin) for leaf, twin in zip(leaves, others, strict=True))


def _is_equal(leaf: Any, other: Any) -> bool:
    if isinstance(leaf, Tensor) and isinstance(other, Tensor):
        if leaf.layout is not torch.strided or other.layout is not torch.strided:
            return False
        facts = [(one.dtype, one.device, one.shape, one.stride(), one.requires_grad) for one in (leaf, other)]
        return facts[0] == facts[1] and torch.equal(leaf, other)
    return type(leaf) is type(other) and type(leaf) in (int, float, str, bool, type(None)) and leaf == other
