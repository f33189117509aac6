"""Every policy there is, by name."""

from collections.abc import Callable

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.tamiyo.controls import NeverPolicy, RandomPolicy
from esper.tamiyo.heuristic import HeuristicPolicy, Policy

LEARNED = "learned:"
"""Before the path of weights, in the name of a policy."""


def _learned(config: GrowthConfig, path: str | None = None) -> Policy:
    from esper.tamiyo.learned.policy import LearnedPolicy  # imports torch

    return LearnedPolicy(config, path)


POLICIES: dict[str, Callable[[GrowthConfig], Policy]] = {
    "heuristic": HeuristicPolicy,
    "learned": _learned,
    "never": NeverPolicy,
    "random": RandomPolicy,
}


def make_policy(name: str, config: GrowthConfig) -> Policy:
    """Build a policy by its name; ``learned:PATH`` is the learned one with weights of your own.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name.startswith(LEARNED):
        return _learned(config, name.removeprefix(LEARNED))
    if name not in POLICIES:
        raise ConfigError(f"There is no policy {name!r}. {closest(name, [*POLICIES, f'{LEARNED}PATH'])}")
    return POLICIES[name](config)


def register_policy(name: str, factory: Callable[[GrowthConfig], Policy]) -> None:
    """Add a policy of your own: ``factory(config)`` builds it.

    Raises:
        ConfigError: if there is one of this name.
    """
    if name in POLICIES:
        raise ConfigError(f"There is a policy {name!r} already. Choose another name.")
    POLICIES[name] = factory
