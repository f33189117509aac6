"""What ``esper run`` tells its user goes through here, whatever it looks like in the end."""

import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from esper.cli.options import Options

if TYPE_CHECKING:
    from esper.runtime.session import Session

Event = dict[str, Any]


@dataclass(frozen=True)
class Heading:
    """What a run is about.

    Attributes:
        training, held_out, test: samples.
        samples: what a sample is, in the plural.
        classes: kinds that are told apart.
        kinds: what a class is, in the plural.
        parameters: of the host.
        run_id: what the run is called wherever it is heard of.
        trace_id: of its trace; None if it has none.
    """

    task: str
    host: str
    directory: str
    seed: int
    epochs: int
    training: int
    held_out: int
    test: int
    samples: str
    classes: int
    kinds: str
    parameters: int
    run_id: str = ""
    trace_id: str | None = None

    def __str__(self) -> str:
        sizes = f"{self.training:,} training, {self.held_out:,} held-out, {self.test:,} test {self.samples}"
        return (
            f"{self.task}: {sizes}, {self.classes} {self.kinds}; a host of {self.parameters:,} parameters\n"
            f"run directory {self.directory}\n" + ("" if self.trace_id is None else f"trace {self.trace_id}\n")
        )


class Closing(NamedTuple):
    """The end of a run: its result as it is stored, as a table, and in words."""

    result: dict[str, Any]
    table: str
    words: str
    directory: Path


class Presentation(ABC):
    """Shows a run. Called with every event of the session; entered for the whole run, so that what it changed on the
    terminal is put back however the run ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def begin(self, heading: Heading) -> None:
        """What is to be shown before the first event; a run that cannot begin shows nothing."""

    @abstractmethod
    def follow(self, session: "Session") -> None:
        """The run begins, or goes on: its position may be read from now on."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Show an event if it is worth it."""

    @abstractmethod
    def say(self, what: str, text: str, **fields: object) -> None:
        """Show what is no event of the session; ``what`` is one word for it. Only a log for machines has ``fields``."""

    @abstractmethod
    def control(self, name: str, done: int, total: int, train_flops: int) -> None:
        """``done`` of a control's ``total`` whole runs of ``train_flops`` each are over. Called with 0 as it begins."""

    @abstractmethod
    def announce_stop(self) -> None:
        """The run will stop after this step. Called from a signal handler."""

    @abstractmethod
    def closing(self, closing: Closing) -> None:
        """The last words of a finished run."""

    @abstractmethod
    def stop(self) -> None:
        """Leave the terminal as it was; what was shown stays. What is said later stands below."""


class Quiet(Presentation):
    """Shows nothing: of several processes that train together, one is enough."""

    def begin(self, heading: Heading) -> None: ...
    def follow(self, session: "Session") -> None: ...
    def __call__(self, event: Event) -> None: ...
    def say(self, what: str, text: str, **fields: object) -> None: ...
    def control(self, name: str, done: int, total: int, train_flops: int) -> None: ...
    def announce_stop(self) -> None: ...
    def closing(self, closing: Closing) -> None: ...
    def stop(self) -> None: ...


def presentation(options: Options) -> Presentation:
    """How this run is shown: as asked for, and as its output allows.

    A live display needs a terminal and rich. It is a comfort: without rich there are plain lines and a note.

    Raises:
        ConfigError: if a log in JSON is asked for and structlog is not installed.
    """
    rank = os.environ.get("RANK", "")  # set by torchrun
    if rank.isdecimal() and int(rank) > 0:
        return Quiet()
    if options.log_format == "json":
        from esper.cli.console.machine_log import MachineLog

        return MachineLog()
    from esper.cli.console.plain import PlainLines

    if options.plain or not sys.stdout.isatty():
        return PlainLines()
    try:
        from esper.cli.console.live import LiveDisplay, terminal
    except ImportError:
        lines = PlainLines()
        lines.say("note", "shown line by line, as rich is not installed: pip install 'esper-morphogenetic[run]'")
        return lines
    console = terminal()
    return PlainLines() if console is None else LiveDisplay(console)
