"""Runs of three kinds of hosts in which whatever grows is adopted and kept, so that only budgets bound it."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

import esper
from esper.kasmina.flops import FlopCounter
from esper.kasmina.host.anchoring import places
from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost

BATCH, STEPS_PER_EPOCH, EPOCHS, HELD_OUT = 16, 8, 10, 60
HOSTS = {
    "mlp": (MLPHost((12, 6, 6, 3)), lambda count: torch.randn(count, 12)),
    "cnn": (CNNHost((1, 12), 3, widths=(4, 4, 5), strides=(1, 2)), lambda count: torch.randn(count, 12)),
    "gpt": (GPTHost(5, 6, width=8, hidden=8, blocks=2), lambda count: torch.randint(5, (count, 6))),
}


def strength(model: nn.Module) -> float:
    """How much of what has grown is blended in: 0 in the twin and without the graft, else above."""
    return sum(float(place.state.alpha.sum()) + len(place.arena.fossils) for place in places(model))


@dataclass
class Budgeted:
    """A run of one of the hosts.

    Args:
        host: name of the host.
        config: how it may grow.
        session: further arguments of the session.
    """

    host: str
    config: esper.GrowthConfig
    session_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        factory, draw = HOSTS[self.host]
        torch.manual_seed(0)
        self.x = draw(BATCH * STEPS_PER_EPOCH)
        self.held_x = draw(HELD_OUT)
        self.noise, self.worth = torch.rand(HELD_OUT), 0.5 + torch.rand(HELD_OUT)
        self.labels = self.x if self.host == "gpt" else torch.randint(3, (len(self.x),))
        config = replace(self.config, min_targets=0)  # only budgets bound it, and not how much data it sees
        self.model = esper.wrap(factory(), config, example=self.x[:2])
        self.events: list[dict[str, Any]] = []
        self.session = esper.Session(
            self.model,
            AdamW(self.model.parameters(), lr=1e-2),
            loss=self.loss,
            evaluate=self.evaluate,
            planned_steps=EPOCHS * STEPS_PER_EPOCH,
            on_event=self.events.append,
            **self.session_arguments,
        )

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())

    def evaluate(self, model: nn.Module) -> esper.Evaluation:
        """Says that whatever has grown is better."""
        model(self.held_x)
        return esper.Evaluation(losses=self.noise - min(strength(model), 1.0) * self.worth)

    def train(self, epochs: int = EPOCHS) -> "Budgeted":
        for _ in range(epochs):
            for x, y in zip(self.x.split(BATCH), self.labels.split(BATCH), strict=True):
                self.session.step((x, y))
            self.session.after_epoch()
        return self

    def finish(self) -> "Budgeted":
        self.train(EPOCHS - self.session.epoch).session.finish()
        return self

    @property
    def parameters(self) -> int:
        """Of the network that the run has made."""
        return sum(parameter.numel() for parameter in esper.export(self.model).parameters())

    @property
    def forward_flops(self) -> int:
        """Of that network, for the held-out samples."""
        network = esper.export(self.model)
        with torch.no_grad(), FlopCounter() as counter:
            network(self.held_x)
        return counter.flops

    def told(self, event: str, key: str) -> list[Any]:
        return [one[key] for one in self.events if one["event"] == event]
