"""Runs the old or the new of two ways, as a flag says, and remembers which."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from esper.contracts.flags import Flags

Result = TypeVar("Result")

HISTORY = 1000
"""Routes that are remembered one by one; all are counted."""


@dataclass(frozen=True, slots=True)
class Route:
    """One call.

    Args:
        feature: name of the flag.
        path: which of the two ran.
        reason: what decided.
        error: class and text of the exception that it raised; None if it returned.
        seconds: it took.
    """

    feature: str
    path: Literal["legacy", "new"]
    reason: str
    error: str | None
    seconds: float


class MigrationRouter:
    """Calls one of two functions by a flag. What the new one raises is raised: the old one never runs in its place.

    Any thread may use it; the functions run outside its lock.

    Args:
        flags: as they were resolved for the model, once.
    """

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._history: deque[Route] = deque(maxlen=HISTORY)

    def route(self, feature: str, legacy_fn: Callable[[], Result], new_fn: Callable[[], Result]) -> Result:
        """Call ``new_fn`` if the flag is switched on, else ``legacy_fn``, and return what it returns.

        A flag that is on because nobody set any is no switch to the new way, as for the layers.

        Raises:
            ConfigError: if there is no such flag; neither is called then.
            BaseException: whatever the function raises, once it is recorded.
        """
        flag = self.flags[feature]
        path: Literal["legacy", "new"] = "new" if flag.is_switched_on else "legacy"
        error, began = None, time.perf_counter()
        try:
            return (new_fn if path == "new" else legacy_fn)()
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}".removesuffix(": ")
            raise
        finally:
            self._record(Route(feature, path, flag.reason, error, time.perf_counter() - began))

    def counts(self, feature: str) -> dict[str, int]:
        """How often each of the two ran: ``legacy`` and ``new``, and of these ``legacy_failed`` and ``new_failed``."""
        self.flags[feature]  # an unknown one is refused
        with self._lock:
            ran = {path: self._counts[feature, path] for path in ("legacy", "new")}
            return ran | {f"{path}_failed": self._failures[feature, path] for path in ("legacy", "new")}

    @property
    def history(self) -> tuple[Route, ...]:
        """The last routes, oldest first."""
        with self._lock:
            return tuple(self._history)

    def _record(self, route: Route) -> None:
        with self._lock:
            self._history.append(route)
            self._counts[route.feature, route.path] += 1
            self._failures[route.feature, route.path] += route.error is not None
