"""Every policy there is, by name."""

from collections.abc import Callable

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.tamiyo.controls import NeverPolicy, RandomPolicy
from esper.tamiyo.heuristic import HeuristicPolicy, Policy

POLICIES: dict[str, Callable[[GrowthConfig], Policy]] = {
    "heuristic": HeuristicPolicy,
    "never": NeverPolicy,
    "random": RandomPolicy,
}


def make_policy(name: str, config: GrowthConfig) -> Policy:
    """Build a policy by its name.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name not in POLICIES:
        raise ConfigError(f"There is no policy {name!r}. {closest(name, POLICIES)}")
    return POLICIES[name](config)


def register_policy(name: str, factory: Callable[[GrowthConfig], Policy]) -> None:
    """Add a policy of your own: ``factory(config)`` builds it.

    Raises:
        ConfigError: if there is one of this name.
    """
    if name in POLICIES:
        raise ConfigError(f"There is a policy {name!r} already. Choose another name.")
    POLICIES[name] = factory
