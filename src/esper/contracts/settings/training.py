"""How live grafts train."""

from dataclasses import dataclass

from esper.contracts.settings.rules import ABOVE_0, AT_LEAST_0, SHARE, or_none, setting


@dataclass(frozen=True)
class GraftTrainingSettings:
    """How live grafts train. Read by the trainer.

    Args:
        graft_lr: the grafts' learning rate relative to the host's. None takes 1.5 behind optimizers of the Adam family,
            and what gives a peak of 0.001 behind others, whose rates mean something else; times the family's own rate,
            which is 0.5 for convolutions.
        peak_lr: the schedule's peak. None takes the largest rate seen, or the one that ``OneCycleLR`` tells; name it
            where another schedule rises late, or a run goes on with a trained model at a small rate, or its grafts
            train at that rate too.
        rewarm: share of the peak to which the host's learning rate is lifted while a graft trains that was born where
            the rate was below 10 % of the peak; it joins the grafts' decay at the end. None leaves it to the scheduler.
        graft_weight_decay: decoupled weight decay of live grafts.
    """

    graft_lr: float | None = setting(None, or_none(ABOVE_0))
    peak_lr: float | None = setting(None, or_none(ABOVE_0))
    rewarm: float | None = setting(None, or_none(SHARE))
    graft_weight_decay: float = setting(0.01, AT_LEAST_0)
