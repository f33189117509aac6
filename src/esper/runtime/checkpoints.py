"""Checkpoints of a session: what they hold, writing them on the way, and going on from one."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from esper.checkpoint import store
from esper.checkpoint.shape import check_shape
from esper.checkpoint.tree import clone
from esper.contracts.errors import CheckpointError
from esper.contracts.events import CheckpointWritten
from esper.runtime.growth import Growth
from esper.runtime.identity import Identity
from esper.runtime.record.books import Books
from esper.runtime.run import Run
from esper.runtime.saved import SavedSession, upgraded

FOLDER = "checkpoints"
"""Of a run directory."""

UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a part of a checkpoint that does not fit may raise anywhere, the caller's objects among it."""


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        run: the run.
        growth: all that happens to its seeds beside the training.
        identity: tells its checkpoints from those of other runs.
        loader: the caller's, or None.
        policy: the controller.
        directory: of the run; None writes none on the way.

    Attributes:
        answered: ids of commands whose answers the newest checkpoint holds.
    """

    def __init__(
        self, run: Run, growth: Growth, identity: Identity, loader: Any, policy: Any, directory: Path | None
    ) -> None:
        self._run, self._growth, self._identity = run, growth, identity
        self._loader, self._policy, self._directory = loader, policy, directory
        self.answered: frozenset[str] = frozenset()

    def save(self, path: Path) -> Path:
        """Write one; the folder of the new generation."""
        run, begun = self._run, time.perf_counter()
        answered = frozenset(run.books.answers)
        folder = store.write(path, self._state())
        self.answered = answered
        seconds, size = round(time.perf_counter() - begun, 4), store.size_bytes(folder)
        run.journal.write(CheckpointWritten(step=run.step, seconds=seconds, bytes=size, where=self._name(folder)))
        return folder

    def _name(self, folder: Path) -> str:
        """Of a checkpoint; within the run's directory as seen from there, for that may be moved."""
        own = self._directory
        return str(folder.relative_to(own) if own is not None and folder.is_relative_to(own) else folder)

    def write(self) -> None:
        """One on the way. Where the disk is full the run goes on without, and tries again at the next one."""
        if self._directory is None:
            return
        journal = self._run.journal
        journal.save()  # a resumed run takes its bulky lines from there
        try:
            self.save(self._directory / FOLDER)
        except OSError as error:
            journal.warn("checkpoint", f"No checkpoint was written at step {self._run.step}: {error}.")
        else:
            journal.is_mended("checkpoint")

    def read(self, path: Path) -> Any:
        """One that is on disk, as :meth:`restore` takes it.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        saved = store.read_saved(path)
        return upgraded(saved.state, saved.format)

    def restore(self, state: Any) -> None:
        """Build everything, try what belongs to the caller, and only then take on what was built.

        Raises:
            CheckpointError: if it does not fit this run; nothing was changed then.
        """
        run = self._run
        self._identity.check(state)
        check_shape(state, SavedSession, "")
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
