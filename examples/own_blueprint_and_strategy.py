"""A blueprint and a grafting strategy of your own, and a seed that is told to grow.

python examples/own_blueprint_and_strategy.py [EPOCHS]
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40


@esper.register_blueprint
@dataclass(frozen=True)
class Waves(esper.Blueprint):
    """One hidden layer of sines: ``W2 sin(W1 x + b1)``, with ``W2 = 0`` at birth, so that it begins as the identity."""

    id: ClassVar[str] = "waves"
    family: ClassVar[str] = "waves"
    size: ClassVar[str | None] = "hidden"  # what is fitted into the budget

    hidden: int = 16

    def shapes(self, ports: esper.Ports) -> dict[str, tuple[int, ...]]:
        return {"w1": (self.hidden, ports.inputs), "b1": (self.hidden,), "w2": (ports.outputs, self.hidden)}

    def init(self, ports: esper.Ports, generator: torch.Generator) -> dict[str, Tensor]:
        params = {name: torch.zeros(shape) for name, shape in self.shapes(ports).items()}
        params["w1"].normal_(0, 3.0, generator=generator)
        params["b1"].uniform_(0, 2 * torch.pi, generator=generator)
        return params

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(torch.sin(F.linear(x, params["w1"], params["b1"])), params["w2"])


@esper.register_strategy
@dataclass(frozen=True)
class SlowStart(esper.GraftStrategy):
    """Alpha rises at half speed for the first steps, then at one and a half times the usual one."""

    id: ClassVar[str] = "slow_start"
    memory: ClassVar[int] = 1  # steps done, for each graft
    needs_signals: ClassVar[bool] = False

    slow_steps: int = 4

    def speed(self, memory_GM: Tensor, signals: esper.GraftSignals) -> tuple[Tensor, Tensor]:
        is_slow_G = memory_GM[:, 0] < self.slow_steps
        return torch.where(is_slow_G, 0.5, 1.5), memory_GM + 1


generator = torch.Generator().manual_seed(0)
x = torch.rand(2000, 2, generator=generator) * 4 - 2
y = (torch.sin(4 * x[:, 0]) + torch.sin(4 * x[:, 1]) > 0).long()  # an egg box
train, held_out = slice(0, 1000), slice(1000, 2000)

torch.manual_seed(0)
config = esper.GrowthConfig(
    layers=["", "0"], max_rounds=0, blueprints=["waves"], strategy="slow_start", capacity_per_round=2.0, max_growth=4.0
)
model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
model = esper.wrap(model, config, example=x[:8])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = esper.BatchLoader((x[train], y[train]), batch_size=32, seed=0)


def evaluate(model):
    """One loss per held-out sample, always in the same order."""
    logits = model(x[held_out])
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y[held_out], reduction="none"), correct=logits.argmax(1) == y[held_out]
    )


session = esper.Session(
    model,
    optimizer,
    loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    evaluate=evaluate,
    planned_steps=EPOCHS * len(loader),
    loader=loader,
)
for epoch in range(EPOCHS):
    if epoch == EPOCHS // 10:  # max_rounds=0: nothing grows by itself
        session.germinate("", "all", blueprint="waves", strategy="slow_start")
        print(f"epoch {epoch + 1}: the whole model was told to grow a path of waves around itself")
    for batch in loader:
        session.step(batch)
    session.after_epoch()
    if (epoch + 1) % max(1, EPOCHS // 5) == 0:
        print(f"epoch {epoch + 1:3}: held-out accuracy {evaluate(model).correct.float().mean():.1%}")
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} by {report.strategy}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(model)}")
print(f"\nexported as plain torch:\n{esper.export(model)}")
