"""The live display on a terminal: rich draws it some times a second, in a thread of its own, from plain values.

A training step does nothing for it, and nothing is read from a device: the display knows what events have told, and
polls the session's position.
"""

import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment

from esper.cli.console.presentation import Closing, Event, Heading, Presentation
from esper.cli.console.scene import ControlRuns, Scene
from esper.cli.console.screen import screen
from esper.cli.console.time_left import TimeLeft
from esper.observability.told import told

if TYPE_CHECKING:
    from esper.runtime.session import Session

REFRESHES_PER_SECOND = 3
"""Calm to look at, and the training step's thread is asked for its interpreter no more often than that."""

_ALOUD = frozenset({"note", "fault", "emergency", "rollback"})
"""Events that stay above the display."""


def terminal() -> Console | None:
    """The terminal of stdout; None if it cannot draw a live display."""
    console = Console(highlight=False, markup=False, emoji=False)
    can_draw = console.is_terminal and console.is_interactive and console.encoding.startswith("utf")
    return console if can_draw else None


class LiveDisplay(Presentation):
    """Draws a run until it is stopped, and leaves its last state behind.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._scene, self._pace = Scene(), TimeLeft()
        self._scene_lock = threading.Lock()  # never held while something is printed
        self._heading: Heading | None = None
        self._session: Session | None = None
        self._is_over = False
        self._live = Live(
            get_renderable=lambda: self,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            vertical_overflow="crop",
            redirect_stderr=sys.stderr.isatty(),  # what goes into a file stays there
        )

    def begin(self, heading: Heading) -> None:
        self._heading = heading

    def follow(self, session: "Session") -> None:
        scene = Scene()
        for event in session.events:
            scene.add(event)
        self._scene, self._session = scene, session
        self._head()
        self._live.start()

    def __call__(self, event: Event) -> None:
        with self._scene_lock:
            self._scene.add(event)
        if event["event"] in _ALOUD and (words := told(event)) is not None:
            self.say(words.what, str(words))

    def say(self, what: str, text: str, **fields: object) -> None:
        self._print(f"{what:<13}{text}")

    def control(self, name: str, done: int, total: int, train_flops: int) -> None:
        now = time.monotonic()
        with self._scene_lock:
            self._scene.controls.setdefault(name, ControlRuns(total, began_s=now)).note(now, done)

    def announce_stop(self) -> None:
        self._scene.is_stopping = True  # no lock and no print: this is a signal handler

    def closing(self, closing: Closing) -> None:
        self.stop()
        for line in f"\n{closing.table}\n\n{closing.words}".splitlines():
            self._print(textwrap.fill(line, self._console.width, break_long_words=False, break_on_hyphens=False))

    def stop(self) -> None:
        self._is_over = True
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        assert self._session is not None
        position, now = self._session.position, time.monotonic()
        height = options.size.height - 1  # the cursor stands in the line below
        with self._scene_lock:
            self._pace.note(now, self._scene.work(position)[0])
            lines = screen(self._scene, position, self._pace, now, options.max_width, height, is_over=self._is_over)
        for index, line in enumerate(lines):  # they fit as they are: rich need not wrap them
            if index:
                yield Segment.line()
            yield from line.render(console)

    def _head(self) -> None:
        if self._heading is not None:
            heading, self._heading = self._heading, None
            self._console.print(str(heading), soft_wrap=True)

    def _print(self, text: str) -> None:
        self._head()
        self._console.print(text, soft_wrap=True)
