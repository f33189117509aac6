"""A loop of Accelerate: bfloat16, gradients of two batches at a time, clipping, and a checkpoint that is gone on from.

python examples/accelerate_loop.py [EPOCHS]
"""

import sys
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

import esper
from esper.integrations.accelerate import Accumulation, register_session

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40


def rings(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the plane; their classes are four rings around its middle."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 2, generator=generator)
    return points, torch.bucketize(points.norm(dim=1), torch.tensor([0.7, 1.2, 1.7]))


x, y = rings(1280, seed=1)
x_held_out, y_held_out = rings(1000, seed=2)

accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 4))  # too narrow for rings, on purpose
# First wrap, then build the optimizer, then prepare.
model = esper.wrap(model, esper.GrowthConfig(capacity_per_round=2.0, max_growth=4.0), example=x[:8])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
steps = EPOCHS * len(loader)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps // 2)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)


def train_step(batch):
    """One step, exactly as you would write it without Esper."""
    inputs, targets = batch
    with accelerator.accumulate(model):
        loss = F.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return loss.detach()


def evaluate(model):
    """One loss per held-out sample, always in the same order."""
    logits = model(x_held_out)
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y_held_out, reduction="none"), correct=logits.argmax(1) == y_held_out
    )


session = esper.Session(
    model,
    optimizer,
    train_step=train_step,
    evaluate=evaluate,
    planned_steps=steps,
    scheduler=scheduler,
    scaler=accelerator.scaler,  # None but in float16
    extra={"accumulation": Accumulation(accelerator)},
)
register_session(accelerator, session)

with TemporaryDirectory() as folder:
    while session.epoch < EPOCHS:
        for batch in loader:
            session.step(batch)
        session.after_epoch()
        if session.epoch == EPOCHS // 2:
            accelerator.save_state(folder)
            accelerator.load_state(folder)  # as a run does that is started again: it regrows what had grown
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} on {report.layer_id or 'the whole model'}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(model)}")

plain = esper.export(accelerator.unwrap_model(model, keep_fp32_wrapper=False)).eval()
accuracy = (plain(x_held_out).argmax(1) == y_held_out).float().mean()
print(
    f"\nexported: {sum(one.numel() for one in plain.parameters())} parameters in plain torch, accuracy {accuracy:.1%}"
)
