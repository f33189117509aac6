"""Gradients that the caller's own code gathers over batches: steps that are taken once more gather them likewise."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer

from esper.contracts.errors import ConfigError

Gathered = dict[str, dict[str, Any]]
"""By object, whether a step only gathered gradients; beside the facts of modules, none of which has such a name."""


@runtime_checkable
class Accumulates(Protocol):
    """An object of ``extra`` by which ``train_step`` decides whether it only gathers gradients, not by its state alone.

    With Accelerate the end of an epoch decides too, which no step that is taken once more comes to.
    """

    @property
    def gathers(self) -> bool:
        """Whether the step before only gathered gradients."""

    def repeating(self, gathers: bool) -> AbstractContextManager[None]:
        """Around a step that is taken once more, which is to do the same."""


class Accumulation:
    """All such objects of a run.

    Args:
        extra: the caller's further objects, by name.
    """

    def __init__(self, extra: Mapping[str, Any]) -> None:
        self._each = {f"extra..{name}": item for name, item in extra.items() if isinstance(item, Accumulates)}

    def gathered(self) -> Gathered:
        """What the step before did."""
        return {name: {"gathers": item.gathers} for name, item in self._each.items()}

    @contextmanager
    def repeated(self, gathered: Mapping[str, dict[str, Any]]) -> Iterator[None]:
        """Around a step that is taken once more: what :meth:`gathered` gave after it; more facts may be with it."""
        with ExitStack() as stack:
            for name, item in self._each.items():
                if name in gathered:
                    stack.enter_context(item.repeating(gathered[name]["gathers"]))
            yield


def refuse_uncounted(wrappers: Iterable[Optimizer], extra: Mapping[str, Any]) -> None:
    """Refuse optimizers of Accelerate that rest while it gathers gradients, where nobody knows how far it has come.

    Args:
        wrappers: optimizers around those that step.
        extra: the caller's further objects, by name.

    Raises:
        ConfigError: with what to put into ``extra``.
    """
    for wrapper in wrappers:
        batches = getattr(getattr(wrapper, "gradient_state", None), "num_steps", 1)
        if batches > 1 and not any(isinstance(item, Accumulates) for item in extra.values()):
            raise ConfigError(
                f"{type(wrapper).__name__} gathers the gradients of {batches} batches, and arms must begin where the "
                "run did. Give Session extra={'accumulation': "
                "esper.integrations.accelerate.Accumulation(accelerator)}."
            )
