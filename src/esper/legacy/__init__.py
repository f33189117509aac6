"""The old layer: one seed, five states. :mod:`esper.migration` leads from it to the new one."""
