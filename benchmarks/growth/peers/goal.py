"""What a peer is given: what the grown run of the same seed had."""

from dataclasses import dataclass

from torch import nn

from esper.contracts.errors import ConfigError
from esper.tasks.task import Task


@dataclass(frozen=True)
class Goal:
    """Of the grown run of the same seed.

    Args:
        train_flops: its training FLOPs, arms and judging included.
        parameters: it ended with.
        birth: share of ``train_flops`` that was spent when its first graft was born.

    Raises:
        ConfigError: if ``birth`` is not from 0 to below 1.
    """

    train_flops: int
    parameters: int
    birth: float

    def __post_init__(self) -> None:
        if not 0 <= self.birth < 1:
            raise ConfigError(f"birth is a share from 0 to below 1, not {self.birth}.")


def perceptron(task: Task, peer: str) -> list[nn.Linear]:
    """The layers of a new host, if it is a perceptron of ReLUs.

    Args:
        task: whose host is built, from the global random state.
        peer: that can grow nothing else here.

    Raises:
        ConfigError: if the host is something else.
    """
    host = task.make_host()
    layers = [layer for layer in host.children() if not isinstance(layer, nn.ReLU)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not isinstance(host, nn.Sequential) or len(linear) != len(layers):
        raise ConfigError(f"{peer} is only compared on perceptrons; the host of {task.name} is another network.")
    return linear
