"""Shares of models: how they are written by people, and in thousandths of a percent."""

from contextlib import suppress
from decimal import Decimal, InvalidOperation

from esper.contracts.errors import ConfigError

ALL = 100_000
"""Thousandths of a percent that are 100 %."""

WORDS = {"1": ALL, "true": ALL, "on": ALL, "0": 0, "false": 0, "off": 0}


def parse(text: str, where: str) -> int:
    """A share from ``on``, ``off``, ``1``, ``0``, ``true``, ``false`` or a percentage as ``25%`` or ``0.5%``.

    Args:
        text: what somebody wrote.
        where: what it was written for, to be named in an error.

    Returns:
        Thousandths of a percent, 0 to :data:`ALL`.

    Raises:
        ConfigError: if it is none of these.
    """
    word = text.strip().lower()
    if word in WORDS:
        return WORDS[word]
    wanted = "on, off, or a percentage from 0% to 100% in steps of 0.001%"
    if not word.endswith("%"):
        hint = f" Did you mean {word}%?" if word.replace(".", "", 1).isdecimal() else ""
        raise ConfigError(f"{where} must be {wanted}, not {text!r}.{hint}")
    with suppress(InvalidOperation):  # it is no number
        share = Decimal(word[:-1].strip()) * 1000
        if 0 <= share <= ALL and share == share.to_integral_value():
            return int(share)
    raise ConfigError(f"{where} must be {wanted}, not {text!r}.")


def shown(share: int) -> str:
    """A share for people: ``25 %``."""
    return f"{share / 1000:g} %"
