"""The store: a flagd file, one JSON object with the rule of every flag (https://flagd.dev/schema/v0/flags.json)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.contracts.errors import ConfigError, closest
from esper.contracts.flags import FLAGS
from esper.flags.rule import DISABLED, ENABLED, Rule, from_flagd

SCHEMA = "https://flagd.dev/schema/v0/flags.json"
MOST_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Document:
    """A store that was read and can be used.

    Attributes:
        value: all of the file.
        rules: of Esper's flags that it holds; None for one of another shape than ``esper flags set`` writes.
        unknown: names in it that are no flags of Esper's.
    """

    value: Mapping[str, Any]
    rules: Mapping[str, Rule | None]
    unknown: tuple[str, ...]

    @property
    def complaint(self) -> str | None:
        """What is wrong with names that are no flags of Esper's; None if there are none."""
        if not self.unknown:
            return None
        return f"It sets {self.unknown[0]!r}, which is no flag of Esper's. {closest(self.unknown[0], FLAGS)}"


def parse(data: bytes) -> Document:
    """Read a store.

    Raises:
        ConfigError: if it is no flagd file, or one of Esper's flags in it is none that is on or off. The sentence has
            "it" for the file.
    """
    if len(data) > MOST_BYTES:
        raise ConfigError(f"It is larger than {MOST_BYTES:,} bytes.")
    if not data.strip():
        raise ConfigError("It is empty.")
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"It is no text in UTF-8: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"It is no JSON: {error}.") from None
    if not isinstance(value, dict) or not isinstance(flags := value.get("flags"), dict):
        raise ConfigError('It holds no JSON object with an object "flags".')
    rules = {name: _checked(name, flag) for name, flag in flags.items() if name in FLAGS}
    return Document(value, rules, tuple(name for name in flags if name not in FLAGS))


def text_of(value: Mapping[str, Any]) -> str:
    """What is written for :attr:`Document.value`."""
    return json.dumps({"$schema": SCHEMA, **value}, indent=2, ensure_ascii=False) + "\n"


def _checked(name: str, flag: Any) -> Rule | None:
    where = f"flags.{name}"
    if not isinstance(flag, dict):
        raise ConfigError(f"{where} must be an object, not {flag!r}.")
    if flag.get("state") not in (ENABLED, DISABLED):
        raise ConfigError(f"{where}.state must be {ENABLED} or {DISABLED}, not {flag.get('state')!r}.")
    variants = flag.get("variants")
    if not isinstance(variants, dict) or not all(isinstance(one, bool) for one in variants.values()) or not variants:
        raise ConfigError(f"{where}.variants must be an object of names with true or false, not {variants!r}.")
    default = flag.get("defaultVariant")
    if default is not None and (not isinstance(default, str) or default not in variants):
        raise ConfigError(f"{where}.defaultVariant must be one of its variants, not {default!r}.")
    if not isinstance(flag.get("targeting", {}), dict):
        raise ConfigError(f"{where}.targeting must be an object, not {flag['targeting']!r}.")
    try:
        return from_flagd(flag)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
