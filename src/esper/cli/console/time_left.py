"""How long it will take, from how fast it went."""

from collections import deque

WINDOW_S = 30.0
"""The speed is that of the last while: a run that shares its machine, or has grown, is told soon."""

SETTLED_S = 1.0
"""From less than this nothing is foretold."""


class TimeLeft:
    """Foretells the end of work from the speed of the last ``window_s`` seconds.

    Args:
        window_s: how far back the speed is measured.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque()

    def note(self, now_s: float, done: float) -> None:
        """``done`` of the work is done at ``now_s``, in any unit of work; less than before begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._window_s:
            self._seen.popleft()

    def seconds(self, left: float) -> float | None:
        """Seconds for what is ``left``; None as long as nothing can be foretold."""
        if left <= 0:
            return 0.0
        if not self._seen:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last_s - first_s < SETTLED_S or last <= first:
            return None
        return left * (last_s - first_s) / (last - first)


def clock(seconds: float) -> str:
    """Seconds as on a clock: ``0:05``, ``1:02:03``, ``2 d 1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
