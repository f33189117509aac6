"""What places and grafts are called wherever a reader sees them."""

SPOKEN = {"": "the whole model", "*": "all channels"}
"""Places whose name is no word, in a sentence."""


def place_label(layer_id: str) -> str:
    """``"the whole model"``, ``"all channels (*)"``, else the name by which it is configured: ``"encoder.0"``,
    ``"0:2"`` for a span, ``"blocks.*.mlp"`` for a colony."""
    spoken = SPOKEN.get(layer_id, layer_id)
    return f"{spoken} ({layer_id})" if layer_id and spoken != layer_id else spoken


def seed_label(layer_id: str, seed_id: int | str) -> str:
    """A place, with the number of the seed where not all of its seeds grow together: ``"0, seed 3"``."""
    return place_label(layer_id) + (f", seed {seed_id}" if isinstance(seed_id, int) else "")


def graft_label(layer_id: str, seed_id: int | str, blueprint: str | None) -> str:
    """A place and what grows there: ``"the whole model: bottleneck_mlp"``."""
    return seed_label(layer_id, seed_id) + (f": {blueprint}" if blueprint else "")
