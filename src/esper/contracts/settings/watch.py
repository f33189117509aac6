"""When a run is harmed."""

from dataclasses import dataclass
from typing import Literal

from esper.contracts.settings.rules import ABOVE_0, AT_LEAST_0, SHARE, WHOLE_FROM_1, setting

EmergencyResponse = Literal["cull", "rollback", "lower_lr", "stop"]


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
        emergency_response: how the harm is ended: ``"cull"`` takes out the graft that is at fault alone, and goes back
            where none is; ``"rollback"`` always goes back; ``"lower_lr"`` goes back, and all learning rates are
            multiplied by ``emergency_lr_factor`` from then on; ``"stop"`` goes back to the best state that is kept, if
            there is one, and ends the run by a ``HarmedError``.
        emergency_lr_factor: what learning rates are multiplied by.
        max_emergencies: after so many in a row, with no boundary between them at which all was well, the run stops
            likewise.
    """

    patience_after_cull: int = setting(3, WHOLE_FROM_1)
    emergency_rollback_threshold: float = setting(0.05, AT_LEAST_0)
    spike_z: float = setting(10.0, ABOVE_0)
    emergency_patience: int = setting(3, WHOLE_FROM_1)
    emergency_response: EmergencyResponse = "cull"
    emergency_lr_factor: float = setting(0.5, SHARE)
    max_emergencies: int = setting(10, WHOLE_FROM_1)
