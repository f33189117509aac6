"""Where the arms of a round run. In turn: one after the other, in the run's own objects, once its window is over."""

from collections.abc import Callable, Generator

from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.trying.arms import Arms, Outcome
from esper.runtime.trying.replay import Round
from esper.runtime.trying.steps import Step


class Runner:
    """Runs the arms of rounds. This one does so in turn.

    Args:
        run: the run.
        arms: trains and judges them in the run's objects.
        is_decided: whether the candidates of a round that are left are not tried.
    """

    def __init__(self, run: Run, arms: Arms, is_decided: Callable[[Round], bool]) -> None:
        self._run, self._arms, self._is_decided = run, arms, is_decided

    def begin(self, now: Round) -> None:
        """A round has begun, or goes on in this process."""

    def remember(self, now: Round, step: Step) -> None:
        """The run has taken one more step of the window; ``now`` knows it."""

    def outcomes(self, now: Round) -> Generator[tuple[Lifecycle, Outcome]]:
        """What the arms that are left have come to, by the order of the candidates; the window is over."""
        while now.arm < len(now.candidates) and not self._is_decided(now):
            one = self._run.books.alive[now.candidates[now.arm]]
            yield one, self._arms.take(now, one)

    def drop(self) -> None:
        """The round is over, with or without a verdict: let go of what belongs to it."""

    def close(self) -> None:
        """No more rounds will come."""
