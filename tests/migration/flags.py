"""Flags as they might have been resolved."""

from esper.contracts.flags import FLAGS, Flag, Flags


def flags(**values: bool) -> Flags:
    """All off but for those that are named."""
    return Flags("some-model", {name: Flag(name, values.get(name, False), f"set for {name}") for name in FLAGS})


NEW = flags(chunked_architecture=True, extended_lifecycle=True)
