"""The ranks that train one model together: processes of ``torch.distributed``, each with its own share of every batch.

All of them run the same session. What a decision goes by is the same on all ranks, to the bit: losses are averaged,
flags united, sums added up, and everything else is what rank 0 has found. So all decide the same without being told.
That they do is compared once at every boundary (:meth:`Ranks.check_equal`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from esper.contracts.errors import ConfigError, RankError
from esper.runtime.training.late import Late

T = TypeVar("T")


class Ranks:
    """All ranks, as one of them sees them. A process that is alone asks nobody.

    Args:
        timeout: seconds for which this rank waits for what others have on the host. What is sent between devices has
            the timeout of ``init_process_group``, as with ``DistributedDataParallel``.
        are_apart: whether each trains alone, whoever else there is.

    Raises:
        ConfigError: if ``timeout`` is not above 0.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
    """

    def __init__(self, timeout: float, *, are_apart: bool = False) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ConfigError(f"rank_timeout must be seconds above 0, not {timeout!r:.80}.")
        is_one_of_several = not are_apart and distributed.is_available() and distributed.is_initialized()
        self.size = distributed.get_world_size() if is_one_of_several else 1
        self.rank = distributed.get_rank() if self.size > 1 else 0
        self._timeout = timeout
        if self.size > 1:
            self._host = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def own(self, folder: Path) -> Path:
        """Where this rank writes what each has of its own: rank 0 in ``folder``, others below it."""
        return self.of(self.rank, folder)

    @staticmethod
    def of(rank: int, folder: Path) -> Path:
        """Where a rank writes its own."""
        return folder / f"rank{rank}" if rank else folder

    def mean(self, loss: Tensor | float) -> Tensor | float:
        """A loss, averaged over ranks; a tensor stays on its device, and the host does not wait for that."""
        return self.averaging(loss)()

    def averaging(self, loss: Tensor | float) -> Callable[[], Tensor | float]:
        """Begin to average a loss over ranks; call what is returned to have it, and do meanwhile what can be done."""
        if not self.are_several:
            return lambda: loss
        given = loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)
        sent = given.to(torch.promote_types(given.dtype, torch.float32), copy=True)
        with self._asking("averaging a loss"):
            work = distributed.all_reduce(sent, group=self._group(sent), async_op=True)

        def end() -> Tensor | float:
            with self._asking("averaging a loss"):
                work.wait()
            mean = (sent / self.size).to(given.dtype)
            return mean if isinstance(loss, Tensor) else float(mean)

        return end

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over ranks, in place."""
        self.add_(tensors, share=1 / self.size)

    @torch.no_grad()
    def add_(self, tensors: Sequence[Tensor], share: float = 1.0) -> None:
        """Add tensors up over ranks, in place, all times ``share``; one exchange for each device."""
        for here in _by_device(tensors) if self.are_several else ():
            self._add(here, share)

    def _add(self, tensors: Sequence[Tensor], share: float) -> None:
        wide = [torch.promote_types(one.dtype, torch.float32) for one in tensors]
        kind = max(wide, key=lambda dtype: dtype.itemsize)
        flat = torch.cat([one.detach().to(kind).flatten() for one in tensors])
        with self._asking("adding up"):
            distributed.all_reduce(flat, group=self._group(flat))
        for one, total in zip(tensors, flat.mul_(share).split([one.numel() for one in tensors]), strict=True):
            one.copy_(total.view(one.shape))

    def most(self, flags: Mapping[str, Tensor]) -> dict[str, Late]:
        """Flags by name, each as large as on any rank, on their way to the host; one exchange for each device."""
        if not self.are_several:
            return {name: Late(one) for name, one in flags.items()}
        united: dict[int, Late] = {}
        for here in _by_device(list(flags.values())):
            most = torch.cat([one.detach().to(torch.int32) for one in here])
            with self._asking("uniting flags"):
                work = distributed.all_reduce(most, distributed.ReduceOp.MAX, group=self._group(most), async_op=True)
            parts = most.split([len(one) for one in here])
            united |= {id(one): Late(part, after=work) for one, part in zip(here, parts, strict=True)}
        return {name: united[id(one)] for name, one in flags.items()}

    def copy_(self, tensor: Tensor) -> None:
        """Take on what rank 0 has in a tensor, in place."""
        if self.are_several:
            sent = tensor.detach().clone()
            with self._asking("sending"):
                distributed.broadcast(sent, 0, group=self._group(sent))
            tensor.detach().copy_(sent)

    def same(self, value: T, what: str) -> T:
        """What rank 0 has found; any plain value or tensors of the host.

        Args:
            value: what this rank has.
            what: what it is, in words.

        Raises:
            RankError: if another rank is asked for something else now, or does not answer.
        """
        if not self.are_several:
            return value
        self._meet(what)
        found = [value if self.rank == 0 else None]
        with self._asking(what):
            distributed.broadcast_object_list(found, 0, group=self._host)
        return found[0]  # type: ignore[return-value]

    def gather(self, value: T, what: str) -> list[T]:
        """What every rank has, in their order; as :meth:`same`. It takes the more, the more ranks there are."""
        if not self.are_several:
            return [value]
        self._meet(what)
        return self._gathered(value, what)

    def any(self, is_so: bool, what: str) -> bool:
        """Whether it is so on any rank."""
        if not self.are_several:
            return is_so
        return self._meet(what, int(is_so))[1] > 0

    def largest(self, number: int, what: str) -> int:
        """The largest number that any rank has."""
        return self._meet(what, number)[1] if self.are_several else number

    def wait(self, what: str) -> None:
        """Until all others have come here too."""
        if self.are_several:
            self._meet(what)

    def check_equal(self, values: dict[str, Any], what: str) -> None:
        """Compare what must be the same everywhere.

        Args:
            values: by name, plain values.
            what: what they are, in words.

        Raises:
            RankError: on all ranks, naming the first that differs.
        """
        if not self.are_several:
            return
        least, most = self._meet(what, _number_of(repr(values)))
        if least == most:
            return
        every = self._gathered(values, what)
        rank = next(rank for rank, other in enumerate(every) if other != every[0])
        names = [*every[0], *(name for name in every[rank] if name not in every[0])]
        name = next(name for name in names if every[rank].get(name) != every[0].get(name))
        raise RankError(
            f"Ranks 0 and {rank} do not have the same {what}: {name!r} differs. Every rank must begin with the same "
            "model, and only the optimizer's steps on gradients that are averaged may change it."
        )

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a step, in which gradients are averaged: where torch.distributed fails there, RankError tells it."""
        try:
            yield
        except RuntimeError as error:
            if not self.are_several or not _is_of_the_network(error):
                raise
            raise self._no_answer("a training step") from error

    def _meet(self, what: str, number: int = 0) -> tuple[int, int]:
        """Come to the same point as the others; the least and the largest of their numbers.

        Raises:
            RankError: if another rank has come to another one.
        """
        point = _number_of(what)
        sent = torch.tensor([-point, point, -number, number])
        with self._asking(what):
            distributed.all_reduce(sent, distributed.ReduceOp.MAX, group=self._host)
        least_point, most_point, least, most = sent.tolist()
        if -least_point != most_point:
            every = self._gathered(what, "where ranks are")
            rank = next(rank for rank, other in enumerate(every) if other != every[0])
            raise RankError(
                f"Rank {rank} has come to {every[rank]!r} where rank 0 has come to {every[0]!r}. All ranks must call "
                "the session in the same way: the same commands, as many steps and epochs."
            )
        return -least, most

    def _gathered(self, value: T, what: str) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._asking(what):
            distributed.all_gather_object(found, value, group=self._host)
        return found

    def _group(self, tensor: Tensor) -> Any:
        return self._host if tensor.device.type == "cpu" else distributed.group.WORLD

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._no_answer(what) from error

    def _no_answer(self, what: str) -> RankError:
        return RankError(
            f"Rank {self.rank} of {self.size} does not hear from the others any more ({what}): one of them has died, "
            "or took longer than its time. Look at what the other ranks say; then start all of them again, from the "
            "last checkpoint."
        )


def _by_device(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    devices = dict.fromkeys(one.device for one in tensors)
    return [[one for one in tensors if one.device == device] for device in devices]


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether torch.distributed has raised it. Gloo's errors have no class of their own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _number_of(text: str) -> int:
    """The same for the same text in every process, and hardly ever for two."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


@torch.no_grad()
def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """A number for every tensor by its name, which changes if any bit does; waits once for each device."""
    sums = [(name, _checksum(one.detach())) for name, one in tensors if one.numel()]
    read: dict[str, int] = {}
    for device in dict.fromkeys(number.device for _, number in sums):
        here = [(name, number) for name, number in sums if number.device == device]
        read |= dict(zip((name for name, _ in here), torch.stack([one for _, one in here]).tolist(), strict=True))
    return read


def _checksum(tensor: Tensor) -> Tensor:
    """Sum of the bits, each weighed by where it stands; int64, which wraps around."""
    words, total = tensor.contiguous().flatten().view(_WORDS[tensor.element_size()]), 0
    for start, part in zip(range(0, words.numel(), _PART), words.split(_PART), strict=True):
        total = total + (part * torch.arange(2 * start + 1, 2 * (start + part.numel()), 2, device=part.device)).sum()
    return torch.as_tensor(total)


_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_PART = 2**22
"""Words that are looked at together, so that not much memory is taken."""
