"""The books of a run: lifecycles under way and ended, what was spent, what was measured. Never rolled back."""

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.contracts.commands import Answer, SeedId
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport

FALLING = (State.CULLED, State.CANCELLED)
"""A lifecycle that is still alive in one of these is being blended out."""


@dataclass
class Lifecycle:
    """One journey of one seed, or of a group, from DORMANT to its outcome.

    Attributes:
        number: counts the lifecycles of a run from 1.
        strategy: how its graft is blended in.
        trial: ``"round"`` or ``"live"``.
        parameters: of its graft.
        state: where it is now; in an arm, where it is there.
        since_step: step at which it entered that state.
        looks: keep looks that are over.
        is_kept: whether it passed its keep gate.
        gates: measured values by the name of the state they led to.
        flops: training FLOPs of its arm and of its training in isolation.
        reason: why it ends, once that is decided.
    """

    number: int
    layer_id: str
    seed_id: SeedId
    blueprint: str
    settings: dict[str, Any]
    strategy: str
    trial: str
    parameters: int
    born_step: int
    state: State
    since_step: int
    looks: int = 0
    is_kept: bool = False
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    flops: int = 0
    reason: str = ""

    def report(self, step: int) -> FieldReport:
        """The record of this lifecycle, ended at ``step``."""
        return FieldReport(
            lifecycle=self.number,
            layer_id=self.layer_id,
            seed_id=self.seed_id,
            blueprint=self.blueprint,
            settings=deepcopy(self.settings),
            strategy=self.strategy,
            trial=self.trial,
            parameters=self.parameters,
            born_step=self.born_step,
            ended_step=step,
            outcome=self.state.name,
            reason=self.reason,
            gates=deepcopy(self.gates),
            flops=self.flops,
        )

    def describe(self) -> dict[str, Any]:
        """What and where it is, for the audit log."""
        return {
            "lifecycle": self.number,
            "layer_id": self.layer_id,
            "seed_id": self.seed_id,
            "blueprint": self.blueprint,
            **self.settings,
        }


def numbers(lifecycles: list[Lifecycle]) -> list[int]:
    """Their numbers, in order."""
    return sorted(one.number for one in lifecycles)


@dataclass
class Books:
    """Counters, histories and lifecycles of a run.

    Attributes:
        run_flops: training FLOPs of the run itself.
        arm_flops: training FLOPs of all arms, and of training in isolation.
        judging_flops: FLOPs of the evaluations that judge grafts.
        judged: lifecycles that took their confirm test.
        answers: to commands from outside, by their ids.
    """

    run_flops: int = 0
    arm_flops: int = 0
    judging_flops: int = 0
    lifecycles_begun: int = 0
    rounds_begun: int = 0
    trials_begun: int = 0
    judged: int = 0
    train_losses: list[float] = field(default_factory=list)
    select_losses: list[float] = field(default_factory=list)
    select_metrics: list[float] = field(default_factory=list)
    alive: dict[int, Lifecycle] = field(default_factory=dict)
    reports: list[FieldReport] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)

    def flops(self) -> dict[str, Any]:
        """What was booked, also on each lifecycle that is alive."""
        sums = {name: getattr(self, name) for name in ("run_flops", "arm_flops", "judging_flops")}
        return sums | {"of": {number: one.flops for number, one in self.alive.items()}}

    def take_flops(self, flops: dict[str, Any]) -> None:
        """Book what another rank has, by its :meth:`flops`."""
        self.run_flops, self.arm_flops, self.judging_flops = (
            flops[name] for name in ("run_flops", "arm_flops", "judging_flops")
        )
        for number, own in flops["of"].items():
            self.alive[number].flops = own

    def to_dict(self) -> dict[str, Any]:
        """The books as plain values."""
        return asdict(self) | {"alive": [asdict(one) | {"state": int(one.state)} for one in self.alive.values()]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Books":
        """Inverse of :meth:`to_dict`."""
        alive = [Lifecycle(**one | {"state": State(one["state"])}) for one in saved["alive"]]
        reports = [FieldReport(**one) for one in saved["reports"]]
        answers = {id_: Answer(**one | {"versions": tuple(one["versions"])}) for id_, one in saved["answers"].items()}
        return cls(**saved | {"alive": {one.number: one for one in alive}, "reports": reports, "answers": answers})
