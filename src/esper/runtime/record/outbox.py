"""Hands events on to those who listen, where nothing is half done; each listener by itself."""

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

Line = dict[str, Any]
"""An event as it stands in a log."""

Listener = Callable[[Line], object]
"""Is called with every event: a dict of its own with the key ``"event"``, the same line that the logs hold."""


class Outbox:
    """Events that wait for their listeners.

    An event is put in where it happens and handed over by :meth:`deliver`, which is called where nothing of the run is
    half done: at the end of a step, and between two steps of an arm. A listener may then ask for whatever it likes.
    What that causes is handed over by the next call, so that one that asks again and again holds nothing up.

    A listener that raises an error stays subscribed and hears all later events; it is told once for every listener and
    type of error. An interruption passes, and what had not been handed over by then waits.

    Args:
        tell: called with a sentence about a listener that raised.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._subscriptions: list[_Subscription] = []
        self._is_delivering = False

    @property
    def is_read(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Let a listener hear whatever is put in from now on.

        Returns:
            Ends that; what was not handed over by then is dropped.
        """
        one = _Subscription(listener)
        self._subscriptions.append(one)

        def unsubscribe() -> None:
            if one in self._subscriptions:
                self._subscriptions.remove(one)
            one.waiting.clear()

        return unsubscribe

    def put(self, event: Line) -> None:
        """Let an event wait for all who listen now."""
        for one in self._subscriptions:
            one.waiting.append(event)

    def deliver(self) -> None:
        """Hand over what waits. A listener that causes this again from within is not called while it is at work."""
        if self._is_delivering:
            return
        self._is_delivering = True
        try:
            for one in list(self._subscriptions):
                for _ in range(len(one.waiting)):
                    if one.waiting:  # else it has just unsubscribed
                        self._hand_over(one, one.waiting.popleft())
        finally:
            self._is_delivering = False

    def _hand_over(self, one: "_Subscription", event: Line) -> None:
        try:
            one.listener(_copied(event))  # what one does to it, nobody else is to see
        except Exception as error:  # of the listener's: the run has nothing to do with it
            if type(error) not in one.told:
                one.told.add(type(error))
                self._tell(f"A listener, {_name(one.listener)}, raised {error!r} and goes on hearing all that happens.")


class _Subscription:
    """A listener, what waits for it, and which types of error were told."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.waiting: deque[Line] = deque()
        self.told: set[type[Exception]] = set()


def _copied(event: Line) -> Line:
    """A deep copy; of long lists of numbers far faster than ``copy.deepcopy`` makes one."""
    copied: Line = pickle.loads(pickle.dumps(event, pickle.HIGHEST_PROTOCOL))
    return copied


def _name(listener: Listener) -> str:
    return getattr(listener, "__qualname__", type(listener).__qualname__)
