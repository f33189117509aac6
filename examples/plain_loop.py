"""A training loop of your own: Esper calls your ``train_step`` when it tries something, and you tell it of every step.

python examples/plain_loop.py [EPOCHS]
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

import esper

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def spirals(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three arms that wind around each other, with the arm of each."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * (arm / 3 + 0.8 * radius) + 0.15 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm


torch.manual_seed(0)
x, y = spirals(1200, seed=1)
x_held_out, y_held_out = spirals(1000, seed=2)

# A network that is too narrow for the task, on purpose.
model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
model = esper.wrap(model, esper.GrowthConfig(seeds_per_layer=6, capacity_per_round=2.0, max_growth=4.0), example=x[:8])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = esper.BatchLoader((x, y), batch_size=32, seed=0)
steps = EPOCHS * len(loader)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def train_step(batch):
    """One whole step, exactly as you would write it without Esper."""
    inputs, targets = batch
    loss = F.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    return loss


def evaluate(model):
    """One loss per held-out sample, always in the same order."""
    logits = model(x_held_out)
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y_held_out, reduction="none"), correct=logits.argmax(1) == y_held_out
    )


session = esper.Session(
    model, optimizer, train_step=train_step, evaluate=evaluate, planned_steps=steps, scheduler=scheduler, loader=loader
)
for epoch in range(EPOCHS):
    for batch in loader:
        loss = train_step(batch)
        session.after_step(batch, loss)
    session.after_epoch()
    if (epoch + 1) % max(1, EPOCHS // 6) == 0:
        accuracy = (model(x_held_out).argmax(1) == y_held_out).float().mean()
        print(f"epoch {epoch + 1:3}: training loss {float(loss.detach()):.3f}, held-out accuracy {accuracy:.1%}")
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} on {report.layer_id or 'the whole model'}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(model)}")

plain = esper.export(model).eval()  # standard torch modules, nothing of Esper inside
assert torch.allclose(plain(x_held_out), model.eval()(x_held_out), atol=1e-5)
print(f"\nexported: {sum(parameter.numel() for parameter in plain.parameters())} parameters in plain torch")
