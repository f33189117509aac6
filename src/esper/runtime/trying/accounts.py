"""What an arm that ran in another process tells the run, which takes it in as if the arm had run in turn."""

from dataclasses import dataclass
from typing import Any

from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.training.tracing import NEVER_CALLED


@dataclass(frozen=True)
class Spent:
    """FLOPs that were booked at a moment.

    Attributes:
        run: by the run itself.
        arms: by arms, and by training in isolation.
        judging: by evaluations.
    """

    run: int
    arms: int
    judging: int

    @classmethod
    def by(cls, run: Run) -> "Spent":
        """All that a run has booked by now."""
        books = run.books
        return cls(books.run_flops, books.arm_flops, books.judging_flops)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.run - other.run, self.arms - other.arms, self.judging - other.judging)


class Account:
    """What one arm does in its process, from here on.

    Args:
        run: as that process has it; its journal only gathers.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._begun, self._known = run, Spent.by(run), len(run.tracing.told)

    @property
    def arm_flops(self) -> int:
        """Training FLOPs so far."""
        return (Spent.by(self._run) - self._begun).arms

    def told(self, one: Lifecycle) -> dict[str, Any]:
        """Plain values for :func:`take_in`."""
        run, spent = self._run, Spent.by(self._run) - self._begun
        return {
            "events": run.journal.events,
            "told": run.tracing.told[self._known :],
            "arm_flops": spent.arms,
            "judging_flops": spent.judging,
            "gates": one.gates,
            "flops": one.flops,
        }


def take_in(run: Run, one: Lifecycle, told: dict[str, Any], begun: Spent) -> None:
    """Let the run know what an arm did, as if it had run in turn after all that the run knows by now.

    Args:
        run: the run.
        one: the candidate.
        told: by :meth:`Account.told`.
        begun: what the run had booked when the arm's process was given its state.
    """
    earlier = Spent.by(run) - begun
    run.books.arm_flops += told["arm_flops"]
    run.books.judging_flops += told["judging_flops"]
    one.gates, one.flops = told["gates"], told["flops"]
    for event in told["events"]:
        if event["event"] != "note":
            run.journal.add(after_those_before(event, earlier))
        elif event["text"].startswith(NEVER_CALLED):  # each place is told once, by whichever arm
            for where in dict.fromkeys(where for where, _ in told["told"]):
                run.tracing.tell(where, [name for there, name in told["told"] if there == where])
        elif event["text"] not in [one["text"] for one in run.journal.events if one["event"] == "note"]:
            run.journal.add(event)


def after_those_before(event: dict[str, Any], earlier: Spent) -> dict[str, Any]:
    """An event of an arm, told after all that was spent since the arm was given its state."""
    if event["event"] == "arm_ended":
        curve, before = event["curve"], earlier.run + earlier.arms + earlier.judging
        return event | {"curve": curve | {"flops": [flops + before for flops in curve["flops"]]}}
    spent = {"run_flops": earlier.run, "arm_flops": earlier.arms, "judging_flops": earlier.judging}
    return event | {name: event[name] + before for name, before in spent.items() if name in event}
