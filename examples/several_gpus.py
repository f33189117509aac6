"""Several ranks train one model and grow it together: ``DistributedDataParallel`` around what ``esper.wrap`` gives, or
``fully_shard``, which gives each rank a part of every parameter.

torchrun --nproc-per-node 2 examples/several_gpus.py [EPOCHS] [--shard]

On machines without GPUs the ranks train on the processor; without torchrun there is one.
"""

import math
import os
import sys

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import esper

EPOCHS = next((int(word) for word in sys.argv[1:] if word.isdigit()), 40)
SIZE, LOCAL_RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
DEVICE = torch.device("cuda", LOCAL_RANK) if torch.cuda.is_available() else torch.device("cpu")


def spirals(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three arms that wind around each other, with the arm of each."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * (arm / 3 + 0.8 * radius) + 0.15 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm


if SIZE > 1:
    distributed.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
rank = distributed.get_rank() if SIZE > 1 else 0

torch.manual_seed(0)  # every rank begins with the same model
x, y = spirals(1200, seed=1)
x_held_out, y_held_out = (part.to(DEVICE) for part in spirals(1000, seed=2))

# A network that is too narrow for the task, on purpose. Wrap it first.
net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
model = esper.wrap(net, esper.GrowthConfig(seeds_per_layer=6, capacity_per_round=2.0, max_growth=4.0), example=x[:8])
model = model.to(DEVICE)
if SIZE > 1 and "--shard" in sys.argv:
    parallel = fully_shard(model)  # of a deep model, first each block
else:
    parallel = DistributedDataParallel(model) if SIZE > 1 else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

data = TensorDataset(x, y)
shares = DistributedSampler(data, SIZE, rank, seed=0)  # each rank has samples of its own
loader = DataLoader(data, batch_size=32 // SIZE, sampler=shares)
steps = EPOCHS * len(loader)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def loss(model, batch):
    inputs, targets = (part.to(DEVICE) for part in batch)
    return F.cross_entropy(model(inputs), targets)


def evaluate(model):
    """One loss per held-out sample, the same samples on all ranks."""
    logits = model(x_held_out)
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y_held_out, reduction="none"), correct=(logits.argmax(1) == y_held_out).float()
    )


session = esper.Session(
    parallel, optimizer, loss=loss, evaluate=evaluate, planned_steps=steps, scheduler=scheduler, clip_grad_norm=1.0
)
for epoch in range(EPOCHS):
    shares.set_epoch(epoch)
    for batch in loader:
        session.step(batch)
    session.after_epoch()
session.finish()
plain = esper.export(model).eval()  # standard torch modules, nothing of Esper inside; all ranks ask together

if rank == 0:
    for report in session.field_reports:
        print(f"{report.blueprint} on {report.layer_id or 'the whole model'}: {report.outcome} ({report.reason})")
    print(f"\n{esper.summary(model)}")
    accuracy = (plain(x_held_out).argmax(1) == y_held_out).float().mean()
    print(f"\n{SIZE} ranks: {sum(one.numel() for one in plain.parameters())} parameters, {accuracy:.1%} right")
if SIZE > 1:
    distributed.destroy_process_group()
