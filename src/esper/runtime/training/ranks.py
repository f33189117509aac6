"""One process trains: until several can agree on what to grow, they are refused before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from esper.contracts.errors import ConfigError


def refuse_ranks() -> None:
    """Refuse to train as one of several ranks.

    Raises:
        ConfigError: if torch.distributed has more than one.
    """
    if _is_initialised() and distributed.get_world_size() > 1:
        raise ConfigError(
            f"This process is rank {distributed.get_rank()} of {distributed.get_world_size()}: Esper trains in one "
            "process only so far, because every rank would grow a network of its own. Start one process."
        )


@contextmanager
def refusing_parallel(model: nn.Module) -> Iterator[None]:
    """Refuse a call inside that reaches the model through ``DistributedDataParallel``, before anything is computed.

    Its buckets are laid out once, for the parameters as they are before anything has grown.

    Raises:
        ConfigError: at such a call.
    """
    if not _is_initialised():
        yield
        return

    def check(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.parallel.DistributedDataParallel) and module.module is model:
            raise ConfigError(
                "The wrapped model is called through DistributedDataParallel, which cannot follow it when it grows. "
                "Call the wrapped model itself: Esper trains in one process only so far."
            )

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _is_initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()
