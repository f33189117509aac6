"""Options as a YAML file, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.cli.options import GROWTH_HINTS, HINTS, IN_FILE, INVOCATION, Options
from esper.cli.values import fit
from esper.contracts.errors import ConfigError, closest


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds, as plain values.

    Raises:
        ConfigError: if it cannot be read, is no mapping, or has a key that stands twice, or a value that is not what it
            looks like.
    """
    try:
        import yaml

        from esper.cli.plain_yaml import load
    except ImportError as error:
        raise ConfigError("PyYAML is not installed: pip install 'esper-morphogenetic[run]'.") from error
    try:
        loaded = load(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    return mapping(f"{path}", loaded)


def read_file(path: Path) -> dict[str, Any]:
    """The values of a configuration file, checked and typed.

    Raises:
        ConfigError: if it cannot be read, is no mapping, has an unknown key, one that stands twice, or a value that is
            of a wrong type or not what it looks like.
    """
    values = read_mapping(path)
    typed = {}
    for key, value in values.items():
        if key not in IN_FILE:
            raise ConfigError(f"{path}: there is no option {key!r}. {closest(str(key), IN_FILE)}")
        if key != "growth":
            typed[key] = fit(f"{path}: {key}", value, HINTS[key])
    growth = mapping(f"{path}: growth", values.get("growth"))
    for key in growth:
        if key not in GROWTH_HINTS:
            raise ConfigError(f"{path}: growth has no setting {key!r}. {closest(str(key), GROWTH_HINTS)}")
    typed_growth = {key: fit(f"{path}: growth.{key}", value, GROWTH_HINTS[key]) for key, value in growth.items()}
    return typed | ({"growth": typed_growth} if growth else {})


def to_values(options: Options) -> dict[str, Any]:
    """Everything that describes the run as plain values, as :func:`read_file` reads them."""
    values = {name: _plain(value) for name, value in vars(options).items() if name not in (*INVOCATION, "growth")}
    return values | {"growth": {name: _plain(value) for name, value in vars(options.growth).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping of options to values; empty for None.

    Raises:
        ConfigError: if it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of options to values, not {type(value).__name__}.")
    return value
