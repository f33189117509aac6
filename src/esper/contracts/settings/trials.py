"""How candidates are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from esper.contracts.settings.rules import ABOVE_0, LOOKS, SHARE, TENTH, WHOLE_FROM_1, setting


@dataclass(frozen=True)
class TrialSettings:
    """How candidates are tried, and what a graft must prove. Read by rounds, live trials and gates.

    Fractions are of the run's planned steps unless said otherwise.

    Args:
        trial: ``"round"`` tries every candidate in an arm of its own; ``"live"`` grows in the run itself and trains the
            twin afterwards.
        judge: of live trials: ``"twin"``, or ``"ablation"`` where not even one more copy of the training state fits
            into memory, which is a weaker guarantee.
        round_fraction: length of the twin's window, and of GRAFTING in a live trial.
        compare: ``"flops"`` gives a candidate as many steps as the twin's FLOPs pay for, ``"steps"`` as many as the
            twin took, which is little protection: then even random features win now and then. Where arms take as many
            steps, as those of colonies always do, a candidate must lead by 0.3 % of the loss as well, and is given up
            when its training loss lies far above the run's.
        choice: ``"first"`` adopts the first candidate that beats the twin, by the order in which they are offered, and
            tries no more; nor does it once two had no lower loss than the twin. ``"best"`` trains all arms and adopts
            the one with the least held-out loss.
        arms: of a round: ``"in_turn"``, or ``"side_by_side"``, each in a process of its own with one thread of torch,
            as many at once as there are cores. That is for models on the CPU only, where the system can fork processes
            and no GPU is visible. All arms are then trained, whatever ``choice`` is, and there are no checkpoints
            within an arm. The run waits for them meanwhile. What is adopted is the same as in turn, to the byte where
            torch has one thread there too. ``"devices"`` runs them on other ranks of ``torch.distributed``, each on a
            device of its own, which take the run's steps while the run makes them (``Session.serve_arms``).
        ramp_fraction: length of the rise of alpha.
        hold_fraction: share of an arm for which the graft is frozen before it is judged, at most 0.1.
        objective: of training in isolation, before a graft is blended in.
        incubation_fraction: length of that training.
        gate_z: paired z-score that the grow and keep gates ask for.
        keep_looks: when a graft in FINE_TUNING may be judged again, at most three.
        freeze: ``"decayed"`` keeps a graft training until the learning rate has decayed, ``"at_once"`` freezes it at
            its keep gate.
        max_batch_bytes: bound on the memory, on host and devices together, of the batches of a window that are
            remembered for arms. What comes after that lies on disk meanwhile, in the run's directory or among the
            system's temporary files. Batches of a loader with ``batch_at`` and ``last_index``, as that of
            ``esper.BatchLoader``, are drawn again and take none.
        timeout: a seed that stays in one state between GERMINATED and EVALUATING for longer is culled.
    """

    trial: Literal["round", "live"] = "round"
    judge: Literal["twin", "ablation"] = "twin"
    round_fraction: float = setting(0.10, SHARE)
    compare: Literal["flops", "steps"] = "flops"
    choice: Literal["first", "best"] = "first"
    arms: Literal["in_turn", "side_by_side", "devices"] = "in_turn"
    ramp_fraction: float = setting(0.015, SHARE)
    hold_fraction: float = setting(0.05, TENTH)
    objective: Literal["none", "pseudo_residual", "reconstruction"] = "none"
    incubation_fraction: float = setting(0.02, SHARE)
    gate_z: float = setting(2.33, ABOVE_0)
    keep_looks: Sequence[float] = setting((0.60, 0.75, 0.90), LOOKS)
    freeze: Literal["decayed", "at_once"] = "decayed"
    max_batch_bytes: int = setting(2**30, WHOLE_FROM_1)
    timeout: float = setting(0.5, SHARE)
