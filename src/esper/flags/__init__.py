"""Feature flags: which model gets what, decided once before its run begins. See ``docs/flags.md``."""

from esper.flags.applied import applied as applied
from esper.flags.edit import set_flag as set_flag
from esper.flags.store import FlagStore as FlagStore
from esper.flags.store import resolve as resolve

__all__ = ["FlagStore", "applied", "resolve", "set_flag"]
