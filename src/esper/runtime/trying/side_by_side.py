"""All arms of a round at the same time, each in a process that is forked off from the run's.

Such a process has whatever the run has, the caller's closures among it, and shares its memory until one of them writes
there. What its arm did comes back in files without a name: events, costs, and the body if it may be adopted. The run
takes that in by the order of the candidates, so that logs and books are those of arms that ran in turn.

Torch's own threads do not live on in a forked process, and work that is dealt to several would wait for them for ever.
With one thread torch never asks for others; so it is told before anything else.
"""

import mmap
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.checkpoint.packed import Packed
from esper.contracts.errors import ArmError, ConfigError
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.state.batch_store import ReplayError
from esper.runtime.trying.accounts import Account, Spent, take_in
from esper.runtime.trying.arms import Arms, Outcome, arm_name
from esper.runtime.trying.replay import Round
from esper.runtime.trying.runners import Runner

PULSE_S = 0.25
"""So often the run looks how far the arms have come."""

STOPS = frozenset({signal.SIGINT, signal.SIGTERM})


def check_can_fork(model: nn.Module) -> None:
    """Refuse to run arms side by side where processes cannot be forked, or torch would not train in them.

    Raises:
        ConfigError: with the reason, and what to do.
    """
    devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]} - {"cpu"}
    reason = None
    if "fork" not in multiprocessing.get_all_start_methods():
        reason = "this system cannot fork processes"
    elif devices:
        reason = f"the model is on {', '.join(sorted(devices))}, and a process that is forked off cannot use it"
    elif torch.accelerator.is_available():
        reason = (
            f"torch sees a device of kind {torch.accelerator.current_accelerator()} and then does not train in forked "
            "processes; where the model is to stay on the CPU, hide it (CUDA_VISIBLE_DEVICES='')"
        )
    elif multiprocessing.current_process().daemon:
        reason = "this process is a daemon of multiprocessing, which may not start others"
    if reason is not None:
        raise ConfigError(f"arms='side_by_side' does not work here: {reason}. Else use arms='in_turn'.")


class SideBySide(Runner):
    """Runs the arms of rounds in processes of their own."""

    def outcomes(self, now: Round) -> Generator[tuple[Lifecycle, Outcome]]:
        """Run all arms that are left, and give what they have come to by the order of the candidates.

        Raises:
            ArmError: as soon as one has failed. All others are ended then, as by an interruption.
            ReplayError: likewise, as soon as one could not take the steps of the window once more.
        """
        run = self._run
        now.rewind()  # a part of an arm that ran in turn is done anew
        arms = [ArmProcess(run, now, run.books.alive[number]) for number in now.candidates[now.arm :]]
        try:
            for arm in arms:
                while not arm.is_over:
                    run.arm = arm.name
                    now.arm_step, now.arm_steps = arm.progress
                    _go_on(arms)
                    run.inbox.safe_point()
                yield arm.one, arm.take_in()
        finally:
            for arm in arms:
                arm.end()


def _go_on(arms: list["ArmProcess"]) -> None:
    """Let as many run as there are cores, and wait until one is over, or for a moment."""
    running = [arm for arm in arms if arm.is_running]
    for arm in [arm for arm in arms if not arm.has_begun][: max(0, num_cores() - len(running))]:
        arm.begin()
        running.append(arm)
    over = wait([arm.sentinel for arm in running], PULSE_S)
    for arm in running:
        if arm.sentinel in over:
            arm.check()


@contextmanager
def _stops_wait() -> Iterator[None]:
    """Requests to stop that come meanwhile are raised at the end.

    A mask of signals would not do: another thread can take what this one blocks, and what the handler then raises here
    in the middle of a fork is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers never run here
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in STOPS}
    replaced = {number: handler for number, handler in handlers.items() if handler is not None}
    for number in replaced:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ArmProcess:
    """One arm in a process of its own.

    Args:
        run: the run.
        now: the round.
        one: the candidate.

    Attributes:
        name: of the arm.
        has_begun: whether the process was started.
        is_over: whether it has done its work.
    """

    def __init__(self, run: Run, now: Round, one: Lifecycle) -> None:
        self._run, self._now, self.one = run, now, one
        self.name = arm_name(now, one)
        self.has_begun = self.is_over = self._is_taken_in = False
        folder: Path | None = run.snapshots.folder
        self._told, self._body = Packed(folder), Packed(folder)
        self._shared = memoryview(mmap.mmap(-1, 3 * 8)).cast("q")  # steps done, steps in all, FLOPs
        context: Any = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._work, args=(os.getpid(),), name=f"esper {self.name}")

    @property
    def is_running(self) -> bool:
        """Whether the process is at work."""
        return self.has_begun and not self.is_over

    @property
    def sentinel(self) -> int:
        """What becomes ready when the process has ended."""
        sentinel: int = self._process.sentinel
        return sentinel

    @property
    def progress(self) -> tuple[int, int | None]:
        """Steps that the arm has done, and will do once that is known."""
        return self._shared[0], self._shared[1] or None

    def begin(self) -> None:
        """Fork."""
        self._begun = Spent.by(self._run)
        with _stops_wait(), warnings.catch_warnings():  # that torch's threads are gone there is taken care of
            warnings.filterwarnings("ignore", message="This process .* is multi-threaded")
            self._process.start()
            self.has_begun = True

    def check(self) -> None:
        """Look how a process that is over has ended.

        Raises:
            ArmError: if it died or raised an error.
            ReplayError: if it could not take the steps of the window once more.
        """
        self._process.join()
        self.is_over = True
        if self._process.exitcode != 0:
            raise ArmError(f"The process of the arm {self.name} {_death(self._process.exitcode)}")
        self._result = self._told.read()
        if "unlike" in self._result:
            raise ReplayError(self._result["unlike"])
        if "error" in self._result:
            error = ArmError(f"The arm {self.name} raised {self._result['error']}")
            error.add_note(self._result["traceback"])
            raise error

    def take_in(self) -> Outcome:
        """Let the run know what the arm did, as if it had run in turn after those that were taken in before."""
        run, result = self._run, self._result
        self._is_taken_in = True
        self._now.arm_step, self._now.arm_steps = self.progress
        run.arm = self.name
        take_in(run, self.one, result, self._begun)
        return Outcome(result["loss"], result["has_passed"], result["is_beaten"], lambda: self._body)

    def end(self) -> None:
        """Leave no process behind; one that was cut short is paid for nevertheless."""
        if self.is_running:
            self._process.kill()
            self._process.join()
        if self.has_begun:
            self._process.close()
            if not self._is_taken_in:
                self._run.costs.charge(self._shared[2], [self.one])

    def _work(self, parent: int) -> None:
        """What the process does."""
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to it too; the run ends it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        run, one = self._run, self.one
        run.journal.gather()
        self._now.rewind()
        account = Account(run)

        def after_step(now: Round) -> None:
            if os.getppid() != parent:
                os._exit(1)  # the run was killed: nobody waits for this arm
            self._shared[0], self._shared[1] = now.arm_step, now.arm_steps or 0
            self._shared[2] = account.arm_flops

        try:
            outcome = Arms(run, after_step).take(self._now, one)
            if outcome.has_passed:
                self._body.write(run.snapshots.body())
            self._told.write(
                account.told(one)
                | {"loss": outcome.loss, "has_passed": outcome.has_passed, "is_beaten": outcome.is_beaten}
            )
        except ReplayError as error:
            self._told.write({"unlike": str(error)})
        except BaseException as error:  # passed on: the run raises it
            self._told.write({"error": repr(error), "traceback": traceback.format_exc()})


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended by itself with exit code {exit_code}."
    name = signal.Signals(-exit_code).name
    remedy = " If that was for lack of memory, use arms='in_turn'." if name == "SIGKILL" else ""
    return f"was ended by {name}.{remedy}"
