"""One GPU trains; on the others run the arms in which growth is tried, while the run goes on.

torchrun --nproc-per-node 2 examples/arms_on_other_gpus.py [EPOCHS]

On machines without GPUs all run on the processor.
"""

import math
import os
import sys

import torch
import torch.nn.functional as F
from torch import distributed, nn

import esper

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
LOCAL_RANK = int(os.environ["LOCAL_RANK"])
DEVICE = torch.device("cuda", LOCAL_RANK) if torch.cuda.is_available() else torch.device("cpu")


def spirals(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three arms that wind around each other, with the arm of each."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * (arm / 3 + 0.8 * radius) + 0.15 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm


def loss(model, batch):
    inputs, targets = (part.to(DEVICE) for part in batch)
    return F.cross_entropy(model(inputs), targets)


def evaluate(model):
    """One loss per held-out sample; needed on all ranks."""
    logits = model(x_held_out)
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y_held_out, reduction="none"), correct=(logits.argmax(1) == y_held_out).float()
    )


distributed.init_process_group("gloo")  # what is exchanged is on the host
x_held_out, y_held_out = (part.to(DEVICE) for part in spirals(1000, seed=2))

# The same on all ranks: a network that is too narrow for the task, on purpose.
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
config = esper.GrowthConfig(seeds_per_layer=6, capacity_per_round=2.0, max_growth=4.0, arms="devices")
model = esper.wrap(net, config, example=x_held_out[:8].cpu()).to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
steps = EPOCHS * math.ceil(1200 / 32)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
session = esper.Session(
    model, optimizer, loss=loss, evaluate=evaluate, planned_steps=steps, scheduler=scheduler, clip_grad_norm=1.0
)

if not session.serve_arms():  # rank 0: it alone needs the training data
    loader = esper.BatchLoader(spirals(1200, seed=1), 32, seed=0)
    for _ in range(EPOCHS):
        for batch in loader:
            session.step(batch)
        session.after_epoch()
    session.finish()
    for report in session.field_reports:
        print(f"{report.blueprint} on {report.layer_id or 'the whole model'}: {report.outcome} ({report.reason})")
    plain = esper.export(model).eval()  # standard torch modules, nothing of Esper inside
    accuracy = (plain(x_held_out).argmax(1) == y_held_out).float().mean()
    print(f"{sum(one.numel() for one in plain.parameters())} parameters, {accuracy:.1%} right")
distributed.destroy_process_group()
