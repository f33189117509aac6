"""How fast Esper is beside the bare model: the measurements of ``esper bench``."""
