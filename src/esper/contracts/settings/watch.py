"""When a run is harmed."""

from dataclasses import dataclass

from esper.contracts.settings.rules import ABOVE_0, AT_LEAST_0, WHOLE_FROM_1, setting


@dataclass(frozen=True)
class WatchSettings:
    """What counts as harm, and how long a run may take to recover. Read by emergencies and keeping.

    Args:
        patience_after_cull: epochs that held-out loss has to recover after a graft was removed, before the run goes
            back to where it was before that graft.
        emergency_rollback_threshold: relative rise of the held-out loss that is an emergency while a graft is live, and
            that counts as not recovered after one was removed.
        spike_z: robust z-score above which a training loss is a spike.
        emergency_patience: steps in a row that must spike, or be non-finite, to be an emergency.
    """

    patience_after_cull: int = setting(3, WHOLE_FROM_1)
    emergency_rollback_threshold: float = setting(0.05, AT_LEAST_0)
    spike_z: float = setting(10.0, ABOVE_0)
    emergency_patience: int = setting(3, WHOLE_FROM_1)
