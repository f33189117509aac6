"""Whether a listed promotion should happen: one pure predicate per gate, over measured values.

What was not measured is missing (None), and missing never passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from esper.contracts.lifecycle import State

LEAST_VARIATION = 0.05
"""Share of what a graft adds that must depend on its input. The rest is an offset, as a bias gives at no cost."""

LEAST_LEAD = 0.003
"""Of its loss, by which a colony must beat a twin that took as many steps: so much two equal runs differ by chance."""

Measured = Mapping[str, float | bool | None]


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a gate: ``low <= measured[name]``; ``only_if`` names a measured flag that can switch it off."""

    name: str
    low: float
    only_if: str | None = None

    def failure(self, measured: Measured) -> str | None:
        """Why the term fails, or None if it holds."""
        if self.only_if is not None and not (flag := measured.get(self.only_if)):
            return f"{self.only_if} is missing" if flag is None else None
        value = measured.get(self.name)
        if value is None:
            return f"{self.name} is missing"
        if not float(value) >= self.low:  # nan fails
            return f"{self.name} is {float(value):.4g}, below {self.low:g}"
        return None


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate said, with every term that failed."""

    passed: bool
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "passed" if self.passed else "; ".join(self.failures)


def gate(
    target: State, measured: Measured, *, gate_z: float = 2.33, judge: Literal["twin", "ablation"] = "twin"
) -> GateResult:
    """Judge the promotion into ``target``.

    Args:
        target: the state to enter, TRAINING to FOSSILIZED.
        measured: the values by name; see the table below for what each gate asks for.
        gate_z: z-score that the grow and keep gates ask for.
        judge: what the grow gate believes. Ablation may only veto beside a twin (where several grafts were on trial
            together, and one of them may be a passenger); without any twin it decides, which is weaker.
    """
    worth = {
        "twin": (
            Term("twin_z", gate_z),
            Term("metric_gain", 0, only_if="has_metric"),
            Term("ablation_z", 0, only_if="is_joint"),
            Term("variation", LEAST_VARIATION),
            Term("lead", LEAST_LEAD, only_if="is_at_equal_steps"),
        ),
        "ablation": (Term("ablation_z", gate_z), Term("variation", LEAST_VARIATION)),
    }
    terms: dict[State, tuple[Term, ...]] = {
        State.TRAINING: (Term("has_slot", 1),),
        State.GRAFTING: (Term("is_finite", 1),),
        State.STABILIZATION: (Term("is_finite", 1), Term("alpha", 1)),
        State.EVALUATING: (Term("is_finite", 1), Term("held_steps", 1)),
        State.FINE_TUNING: (Term("is_finite", 1), *worth[judge]),
        State.FOSSILIZED: (Term("is_finite", 1), Term("ablation_z", gate_z), Term("confirm_margin", 0)),
    }
    failures = tuple(failure for term in terms[target] if (failure := term.failure(measured)) is not None)
    return GateResult(not failures, failures)
