"""How a run may grow: the parts of the configuration, flat in one frozen dataclass."""

from dataclasses import dataclass

from esper.contracts.errors import ConfigError
from esper.contracts.settings.budgets import BudgetSettings
from esper.contracts.settings.controller import ControllerSettings
from esper.contracts.settings.places import PlaceSettings
from esper.contracts.settings.rules import check, refuse_unless
from esper.contracts.settings.training import GraftTrainingSettings
from esper.contracts.settings.trials import TrialSettings
from esper.contracts.settings.watch import WatchSettings

PARTS = (PlaceSettings, ControllerSettings, BudgetSettings, TrialSettings, GraftTrainingSettings, WatchSettings)
"""In the order in which they are shown."""


@dataclass(frozen=True)
class GrowthConfig(
    WatchSettings, GraftTrainingSettings, TrialSettings, BudgetSettings, ControllerSettings, PlaceSettings
):
    """Where, when and how much a model may grow, and what a graft must prove.

    All settings are keywords, with defaults. What each means stands with its part, and by purpose in
    ``docs/settings.md``. Whoever reads only one part takes that as its type.

    Raises:
        ConfigError: if a value cannot work, naming it.
    """

    def __post_init__(self) -> None:
        check(self)
        is_between = self.grow_after <= self.grow_at <= self.grow_until
        refuse_unless(is_between, self, "grow_at", "between grow_after and grow_until")
        if self.max_train_flops is not None and self.objective != "none":
            raise ConfigError(
                f"max_train_flops {self.max_train_flops:g} cannot be kept with objective {self.objective!r}: what "
                "training in isolation will cost is not known beforehand. Leave one of them out."
            )
