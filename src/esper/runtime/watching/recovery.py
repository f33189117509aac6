"""States of the run to go back to: the last good ones, and those from before each adoption.

An entry holds a body, where the scheduler and the policy stood, what was measured then, and which grafts were live. It
may be gone back to as long as every graft that was live in it still is; a fossil is for good, so entries from before
one are forgotten.
"""

import math
from typing import Any

from esper.checkpoint.tree import clone
from esper.contracts.errors import TransitionError
from esper.contracts.events import RolledBack
from esper.contracts.lifecycle import LIVE, State
from esper.runtime.judging.judge import Measurement
from esper.runtime.record.books import FALLING, Lifecycle, numbers
from esper.runtime.run import Run
from esper.runtime.state.snapshot import Kept

GENERATIONS = 2

RETURNS = 2
"""So often may an emergency lead back to one entry. If the run is harmed again from there, an older one is tried."""

Entry = dict[str, Any]


class Recovery:
    """Keeps states to go back to, and goes back.

    Args:
        run: the run.
        policy: the controller; what it remembers goes back too if it has a ``state_dict``.

    Attributes:
        good: the last two states of the run in which all was well, the newest last.
        fallbacks: the run as it was before each adoption, as long as its graft is no fossil.
    """

    def __init__(self, run: Run, policy: Any) -> None:
        self._run, self._policy = run, policy
        self.good: list[Entry] = []
        self.fallbacks: list[Entry] = []

    def is_well(self, now: Measurement) -> bool:
        """Whether the vital signs allow to keep this state as a good one."""
        return math.isfinite(now.loss(self._run.judge.split.select)) and self._run.host_is_finite

    def remember_good(self, now: Measurement) -> None:
        """Take a snapshot of a run in which all is well."""
        self.good = [*self.good, self._entry(now, None, None)][-GENERATIONS:]

    def remember_before(
        self, now: Measurement, live: list[int], body: Kept | None = None, trial: int | None = None
    ) -> None:
        """Keep the run from before an adoption.

        Args:
            now: its evaluation.
            live: numbers of the lifecycles whose grafts were live in it.
            body: its body; None takes the run's as it is.
            trial: number of the live trial that it began or ended with; it replaces what was kept for that before.
        """
        self.fallbacks = [one for one in self.fallbacks if trial is None or one["trial"] != trial]
        self.fallbacks.append(self._entry(now, live, body) | {"trial": trial})

    def forget_trial(self, trial: int) -> None:
        """The run has become the twin of a live trial: there is nothing left to go back to before it."""
        self.fallbacks = [one for one in self.fallbacks if one["trial"] != trial]

    def forget(self) -> None:
        """A graft has become a fossil."""
        self.good, self.fallbacks = [], []

    def renew(self, layer_id: str) -> None:
        """A place was chunked anew; all entries take on its new seeds. It holds no graft, and held none in them."""
        renewed: dict[int, tuple[Kept, Kept]] = {}  # by what it was, which must live on for its id to stay its own
        for one in [*self.good, *self.fallbacks]:
            kept = one["body"]
            if id(kept) not in renewed:
                renewed[id(kept)] = kept, self._run.snapshots.renew(kept, layer_id)
            one["body"] = renewed[id(kept)][1]

    @property
    def newest(self) -> Entry | None:
        """The newest entry that may be gone back to."""
        entries = sorted(self._valid(), key=lambda one: int(one["step"]))
        return next((one for one in reversed(entries) if one["returns"] < RETURNS), None)

    @property
    def best(self) -> Entry | None:
        """The entry with the least held-out loss of those that may be gone back to, however often the run was."""
        return min(self._valid(), key=lambda one: float(one["select_loss"]), default=None)

    def check(self) -> Entry:
        """The newest entry to go back to.

        Raises:
            TransitionError: if there is none.
        """
        if self.newest is None:
            raise TransitionError(NOTHING_TO_GO_BACK_TO)
        return self.newest

    def roll_back(self, entry: Entry, reason: str, who: str) -> None:
        """Restore a valid entry: body, scheduler, policy, and the records of grafts that were live in it.

        Not restored are versions, embargoes and quarantines, the position in the data, the random streams, the books.

        Args:
            entry: the newest or the best.
            reason: for the audit log.
            who: ``"user"``, or ``"session"`` in an emergency.
        """
        run = self._run
        entry["returns"] += who == "session"
        later = [one for one in run.in_state(*LIVE, *FALLING) if one.number not in entry["live"]]
        live = [one for one in later if one.state in LIVE]
        rolled_back = [one.number for one in live]
        run.seeds.move_all(live, State.ROLLED_BACK, reason)
        run.seeds.discard(*later)
        run.captures.take_over(entry["body"], seeds_of=tuple(entry["live"]), is_rollback=True, has_gradients=False)
        run.snapshots.restore_scheduler(entry["scheduler"])
        run.trainer.rates = clone(entry["rates"])
        if entry["policy"] is not None:
            self._policy.load_state_dict(clone(entry["policy"]))
        for number, record in entry["records"].items():
            one = run.books.alive[number]
            one.looks, one.is_kept, one.gates = record["looks"], record["is_kept"], clone(record["gates"])
        self.good = [one for one in self.good if one["step"] <= entry["step"]]
        self.fallbacks = [one for one in self.fallbacks if one["step"] < entry["step"]]
        run.journal.write(
            RolledBack(
                step=run.step,
                to_step=entry["step"],
                reason=reason,
                who=who,
                lifecycles=rolled_back,
                select_loss=entry["select_loss"],
            )
        )

    def state_dict(self, window_of_trial: int | None) -> dict[str, Any]:
        """All entries; of the trial under way without the body, which its window holds too."""
        return {
            "good": self.good,
            "fallbacks": [
                one | {"body": None} if one["trial"] == window_of_trial is not None else one for one in self.fallbacks
            ],
        }

    def load_state_dict(self, state: dict[str, Any], body_of_trial: Kept | None) -> None:
        """Inverse of :meth:`state_dict`."""
        self.good = state["good"]
        self.fallbacks = [one | {"body": one["body"] or body_of_trial} for one in state["fallbacks"]]

    def _valid(self) -> list[Entry]:
        live = set(numbers(self._run.in_state(*LIVE)))
        return [one for one in [*self.fallbacks, *self.good] if live.issuperset(one["live"])]

    def _entry(self, now: Measurement, live: list[int] | None, body: Kept | None) -> Entry:
        run = self._run
        live = numbers(run.in_state(*LIVE)) if live is None else live
        select = run.judge.split.select
        return {
            "step": run.step,
            "returns": 0,
            "live": live,
            "select_loss": now.loss(select),
            "select_metric": now.metric(select),
            "losses": now.losses[select],
            "body": run.snapshots.keep() if body is None else body,
            "scheduler": run.snapshots.scheduler(),
            "rates": clone(run.trainer.rates),
            "policy": clone(self._policy.state_dict()) if hasattr(self._policy, "state_dict") else None,
            "records": {number: _record(run.books.alive[number]) for number in live},
        }


def _record(one: Lifecycle) -> dict[str, Any]:
    """What later looks may change."""
    return {"looks": one.looks, "is_kept": one.is_kept, "gates": clone(one.gates)}


NOTHING_TO_GO_BACK_TO = (
    "There is no good state to go back to. One is kept at every boundary at which nothing is on trial in the run "
    "itself or being blended out, from the first on; it is valid until a graft becomes a fossil, or one that was live "
    "in it is removed."
)
