"""What the environment says of flags: ``ESPER_FLAG_<NAME>``."""

from collections.abc import Mapping

from esper.contracts.errors import ConfigError, closest
from esper.contracts.flags import FLAGS
from esper.flags.shares import parse

PREFIX = "ESPER_FLAG_"


def shares(environment: Mapping[str, str]) -> dict[str, int]:
    """The flags that the environment sets, with their shares in thousandths of a percent. An empty variable sets none.

    Raises:
        ConfigError: if there is no such flag, or its value is none.
    """
    found = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or not text.strip():
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in FLAGS:
            valid = [*map(variable_of, FLAGS)]
            raise ConfigError(f"{variable} names no flag. {closest(variable, valid)}")
        found[name] = parse(text, variable)
    return found


def variable_of(name: str) -> str:
    """The variable that sets a flag."""
    return PREFIX + name.upper()
