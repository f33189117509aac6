"""Checkpoints of a session: what they hold, writing them on the way, and going on from one."""

import os
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from esper.checkpoint.shape import check_shape
from esper.checkpoint.tree import clone
from esper.contracts.errors import CheckpointError
from esper.contracts.events import CheckpointWritten
from esper.runtime.growth import Growth
from esper.runtime.identity import Identity
from esper.runtime.record.books import Books
from esper.runtime.run import Run
from esper.runtime.saved import SavedSession, upgraded
from esper.runtime.state.random_state import random_state, restore_random_state
from esper.shards import Shard, dealt

FOLDER = "checkpoints"
"""Of a run directory."""

UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a part of a checkpoint that does not fit may raise anywhere, the caller's objects among it."""


_UNFINISHED: set[Future[Any]] = set()
"""What is being written in the background, whoever has asked for it."""


def wait_for_all() -> None:
    """Until nothing is written in the background."""
    futures.wait(list(_UNFINISHED))


if hasattr(os, "register_at_fork"):  # a process that is forked off takes no half-done work
    os.register_at_fork(before=wait_for_all)


class Pending(NamedTuple):
    """A checkpoint that is being written in the background.

    Args:
        written: the folder of its generation, and when it was done.
        step: of the run.
        begun: when, by ``time.perf_counter``.
        stall_seconds: for which the run waited.
        answered: ids of commands whose answers it holds.
    """

    written: Future[tuple[Path, float]]
    step: int
    begun: float
    stall_seconds: float
    answered: frozenset[str]


def _written(path: Path, prepared: store.Prepared, number: int) -> tuple[Path, float]:
    return store.write_prepared(path, prepared, number), time.perf_counter()


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        run: the run.
        growth: all that happens to its seeds beside the training.
        identity: tells its checkpoints from those of other runs.
        loader: the caller's, or None.
        policy: the controller.
        directory: of the run; None writes none on the way.
        folder: for those on the way.
        in_background: whether those on the way are written from a copy, while the run goes on.

    Attributes:
        answered: ids of commands whose answers the newest checkpoint holds.
    """

    def __init__(
        self,
        run: Run,
        growth: Growth,
        identity: Identity,
        loader: Any,
        policy: Any,
        directory: Path | None,
        folder: Path | None,
        *,
        in_background: bool,
    ) -> None:
        self._run, self._growth, self._identity = run, growth, identity
        self._loader, self._policy, self._directory, self._folder = loader, policy, directory, folder
        self._in_background = in_background
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Pending | None = None
        self.answered: frozenset[str] = frozenset()

    def save(self, path: Path) -> Path:
        """Write one; the folder of the new generation."""
        folder, seconds, answered = self._stored(path)
        self._tell(folder, self._run.step, seconds, seconds, answered)
        return folder

    def _stored(self, path: Path) -> tuple[Path, float, frozenset[str]]:
        """Write one; its folder, the seconds that took, and ids of the commands whose answers it holds."""
        self.settle()
        wait_for_all()  # another session may be writing to the same folder
        begun, answered = time.perf_counter(), frozenset(self._run.books.answers)
        folder = store.write(path, self._state(), self._number(path))
        return folder, time.perf_counter() - begun, answered

    def _tell(self, folder: Path, step: int, seconds: float, stall: float, answered: frozenset[str]) -> None:
        self.answered = answered
        size, where = store.size_bytes(folder), self._name(folder)
        written = CheckpointWritten(
            step=step, seconds=round(seconds, 4), bytes=size, where=where, stall_seconds=round(stall, 4)
        )
        self._run.journal.write(written)

    def _name(self, folder: Path) -> str:
        """Of a checkpoint; within the run's directory as seen from there, for that may be moved."""
        own = self._directory
        return str(folder.relative_to(own) if own is not None and folder.is_relative_to(own) else folder)

    def write(self) -> None:
        """One on the way. Where the disk is full the run goes on without, and tries again at the next one."""
        if self._folder is None:
            return
        self._run.journal.save()  # a resumed run takes its bulky lines from there
        self.settle()
        self._write(self._folder)
        self._run.ranks.wait("a checkpoint")  # none is further than one ahead of another

    def _write(self, path: Path) -> None:
        try:
            if self._in_background:
                self._pending = self._begin(path)
                return
            folder, seconds, answered = self._stored(path)
        except OSError as error:
            self._tell_failure(self._run.step, error)
            return
        self._tell(folder, self._run.step, seconds, seconds, answered)
        self._run.journal.is_mended("checkpoint")

    def _begin(self, path: Path) -> Pending:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "esper-checkpoints")
        begun, answered = time.perf_counter(), frozenset(self._run.books.answers)
        number = self._number(path)
        prepared = store.Prepared.of(self._state()).held()
        stall = time.perf_counter() - begun
        written = self._writer.submit(_written, path, prepared, number)
        _UNFINISHED.add(written)
        written.add_done_callback(_UNFINISHED.discard)
        return Pending(written, self._run.step, begun, stall, answered)

    def _number(self, path: Path) -> int:
        """Of the next generation, which is the same on all ranks."""
        return self._run.ranks.largest(store.next_number(path), "the number of a checkpoint")

    def settle(self, *, waits: bool = True) -> None:
        """Tell what became of the one that was written in the background.

        Args:
            waits: whether to wait for it; else nothing is told while it is being written.
        """
        pending = self._pending
        if pending is None or not (waits or pending.written.done()):
            return
        try:
            folder, done = pending.written.result()
        except OSError as error:
            self._pending = None
            self._tell_failure(pending.step, error)
            return
        self._pending = None
        self._tell(folder, pending.step, done - pending.begun, pending.stall_seconds, pending.answered)
        self._run.journal.is_mended("checkpoint")

    def close(self) -> None:
        """Wait for the one that is being written, and let go of the thread that writes."""
        self.settle()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _tell_failure(self, step: int, error: OSError) -> None:
        self._run.journal.warn("checkpoint", f"No checkpoint was written at step {step}: {error}.")

    def read(self, path: Path) -> Any:
        """One that is on disk, as :meth:`restore` takes it.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        self.settle()
        wait_for_all()
        ranks = self._run.ranks
        first = store.read_saved(path) if ranks.rank == 0 else None
        before = ranks.same(1 if first is None else _num_writers(first.state), "the newest checkpoint")
        own = self._of_this_rank(path) if ranks.rank < before else None
        saved = first or store.read_saved(own or path)
        newest = ranks.gather(saved.folder.name, "the newest checkpoint")
        if saved.folder.name != min(newest):  # of one that was killed before it had written the last
            saved = store.read_saved(saved.folder.with_name(min(newest)))
        state = upgraded(saved.state, saved.format)
        self._identity.check(state)
        check_shape(state, SavedSession, "")
        if ranks.rank >= before:  # draws of its own
            state["clock"] = state["clock"] | {"random": clone(random_state())}
        is_sharded = self._run.snapshots.mesh is not None
        if before != ranks.size or not is_sharded:
            folder = saved.folder.parent if ranks.rank == 0 or own is None else saved.folder.parent.parent
            self._deal(state, [ranks.of(rank, folder) / saved.folder.name for rank in range(before)])
        return state

    def _deal(self, state: Any, folders: list[Path]) -> None:
        """Give a state that other ranks than now have written, each a part, the parts of this rank.

        Raises:
            CheckpointError: if one of them is not there.
        """
        if not any(isinstance(one, Shard) for one in state["body"]["model"].values()):
            return
        ranks, size = self._run.ranks, 1 if self._run.snapshots.mesh is None else self._run.ranks.size
        saved = [store.read_saved(folder).state for folder in folders]
        for one in saved:
            check_shape(one, SavedSession, "")
        for mine, *parts in zip(_bodies(state), *map(_bodies, saved), strict=True):
            if mine["body"] is not None:
                bodies = [_read(part["body"]) for part in parts]
                mine["body"] = dealt(bodies, ranks.rank if size > 1 else 0, size)

    def _of_this_rank(self, path: Path) -> Path | None:
        """Where this rank has written; None if it was not there then: it goes on as rank 0."""
        ranks = self._run.ranks
        of_a_generation = ranks.own(path.parent) / path.name
        return next((one for one in (ranks.own(path), of_a_generation) if one.exists()), None)

    def restore(self, state: Any) -> None:
        """Build everything, try what belongs to the caller, and only then take on what was built.

        Raises:
            CheckpointError: if it does not fit this run; nothing was changed then.
        """
        run = self._run
        before = state["identity"]["facts"].get("ranks", 1)
        if before != run.ranks.size and state["growth"]["round"] and state["growth"]["round"]["run"] is not None:
            raise CheckpointError(
                f"The checkpoint was written while arms ran, on batches of {before} ranks, and there are "
                f"{run.ranks.size} now. Go on with {before}, or from the checkpoint before."
            )
        with ExitStack() as undo:
            try:
                books, growth = Books.from_dict(state["books"]), self._growth.built(state["growth"])
                self._restore_objects(state, undo)
                self._growth.check(growth, books)
                float(state["losses"][0])  # one number, on whatever device
            except UNFIT as error:
                raise CheckpointError(f"The checkpoint does not fit this run: {error!r}") from error
            undo.pop_all()
        run.books, self.answered = books, frozenset(books.answers)
        run.recent.clear()
        for batch in state["recent"]:
            run.recent.add(batch)
        self._growth.load_state_dict(growth)
        run.losses.total, run.losses.count, run.is_finished = state["losses"]
        run.journal.restore(state["events"])
        if before != run.ranks.size:
            self._growth.abandon(f"{before} ranks have trained until then, and {run.ranks.size} go on")
        run.compare_ranks()

    def _restore_objects(self, state: dict[str, Any], undo: ExitStack) -> None:
        """Model, optimizer, clock, loader and policy; ``undo`` puts them back as they are now."""
        captures, users = self._run.captures, [(self._loader, state["loader"]), (self._policy, state["policy"])]
        remembering = [(item, saved) for item, saved in users if hasattr(item, "load_state_dict")]
        undo.callback(captures.restore, captures.capture())
        for item, _ in remembering:
            undo.callback(item.load_state_dict, clone(item.state_dict()))
        captures.restore(state, is_spare=True)
        for item, saved in remembering:
            item.load_state_dict(saved)
        if self._loader is not None:  # torchdata's makes its iterator late, and draws then: let it be now
            getattr(self._loader, "base_dataloader", self._loader).state_dict()  # the attribute is Accelerate's
        restore_random_state(clone(state["clock"]["random"]))

    def _state(self) -> dict[str, Any]:
        run = self._run
        return {
            "identity": self._identity.to_dict(),
            **run.captures.capture(),
            "books": run.books.to_dict(),
            "recent": list(run.recent),
            "events": run.journal.events,
            "growth": self._growth.state_dict(),
            "losses": (run.losses.total, run.losses.count, run.is_finished),
            "loader": None if self._loader is None else self._loader.state_dict(),
            "policy": self._policy.state_dict() if hasattr(self._policy, "state_dict") else None,
        }


def _num_writers(state: Any) -> int:
    """How many ranks have written a state, if a session has."""
    try:
        return int(state["identity"]["facts"]["ranks"])
    except (LookupError, TypeError, ValueError):
        return 1


def _bodies(state: Any) -> Iterator[dict[str, Any]]:
    """Whatever has a body in a state."""
    yield state
    growth = state["growth"]
    yield from (*growth["recovery"]["good"], *growth["recovery"]["fallbacks"])
    if growth["trial"] is not None:
        yield growth["trial"]["window"]["start"]


def _read(kept: Any) -> Any:
    return kept.read() if isinstance(kept, Packed) else kept
