"""One plain line per thing worth knowing: for pipes, files, and terminals that can do no more."""

import os
from typing import TYPE_CHECKING

from esper.cli.console.presentation import Closing, Event, Heading, Presentation
from esper.observability.told import number, told

if TYPE_CHECKING:
    from esper.runtime.session import Session

EPOCH_LINES = 12
"""About so many epochs of a run have a line."""

_INDENTED = frozenset({"arm", "look", "ended"})
_UNSAID = frozenset({"germinated", "refused"})
"""A round or trial that begins names the places."""


class PlainLines(Presentation):
    """Prints lines."""

    def __init__(self) -> None:
        self._heading: Heading | None = None
        self._epochs = 1
        self._metric = "accuracy"

    def begin(self, heading: Heading) -> None:
        self._heading, self._epochs = heading, heading.epochs

    def follow(self, session: "Session") -> None: ...

    def __call__(self, event: Event) -> None:
        if event["event"] == "epoch":
            self._epoch(event)
            return
        if event["event"] == "model":
            self._metric = event.get("metric") or self._metric
        words = told(event)
        if words is not None and words.what not in _UNSAID:
            self.say(f"  {words.what}" if words.what in _INDENTED else words.what, str(words))

    def say(self, what: str, text: str, **fields: object) -> None:
        self._print(f"{what:<13}{text}")

    def control(self, name: str, done: int, total: int, train_flops: int) -> None:
        if done == 0:
            self.say("control", f"{name}: {train_flops / 1e6:,.1f} M training FLOPs, learning rate searched")

    def announce_stop(self) -> None:
        os.write(2, b"\nesper: stopping after this step ...\n")  # print is not safe in a signal handler

    def closing(self, closing: Closing) -> None:
        self._print(f"\n{closing.table}\n\n{closing.words}")

    def stop(self) -> None: ...

    def _print(self, line: str) -> None:
        if self._heading is not None:
            print(self._heading)
            self._heading = None
        print(line, flush=True)

    def _epoch(self, event: Event) -> None:
        epoch, every = event["epoch"], -(-self._epochs // EPOCH_LINES)
        if epoch % every and epoch not in (1, self._epochs):
            return
        self._print(
            f"epoch {epoch:>3}/{self._epochs:<3}"
            f"train loss {number(event['train_loss'], '.4f')}   held-out loss {number(event['val_loss'], '.4f')}   "
            f"{self._metric} {number(event['val_metric'], '.1%')}"
        )
