"""Reads the JSON file in which a command keeps how far it has come."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from esper.contracts.errors import ConfigError

T = TypeVar("T")

_ADVICE = "Move it away, or name another directory by --output"


def read_kept(path: Path, format_: int, build: Callable[[dict[str, Any]], T]) -> T | None:
    """What was kept; None if there is nothing yet.

    Args:
        path: of the file.
        format_: that this version reads.
        build: makes it from the file's values; what does not fit may raise anything that values raise.

    Raises:
        ConfigError: if it is damaged, or of another version.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != format_:
            raise ConfigError(f"{path} is of format {values['format']}; this version reads {format_}. {_ADVICE}.")
        return build(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}). {_ADVICE}.") from error
