"""Several ranks train one model and grow it together: ``DistributedDataParallel`` around what ``esper.wrap`` gives, or
``fully_shard``, which gives each rank a part of every parameter.

torchrun --nproc-per-node 2 examples/several_gpus.py [EPOCHS] [DIRECTORY] [--shard]

On machines without GPUs the ranks train on the processor; without torchrun there is one. With a directory the run can
be stopped (Ctrl-C, or SIGTERM as a cluster sends it): all ranks end after the same step and save. Started again it goes
on.
"""

import math
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import esper

GIVEN = [word for word in sys.argv[1:] if word != "--shard"]
EPOCHS = int(GIVEN[0]) if GIVEN else 40
DIRECTORY = Path(GIVEN[1]) if len(GIVEN) > 1 else None
STOPPED = 143  # what a shell tells of a process that was asked to terminate: the run is not done
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

share = slice(rank, len(x) // SIZE * SIZE, SIZE)  # each rank has samples of its own, and as many as the others
loader = esper.BatchLoader((x[share], y[share]), batch_size=32 // SIZE, seed=0)  # goes on in the middle of an epoch
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
    parallel,
    optimizer,
    loss=loss,
    evaluate=evaluate,
    planned_steps=steps,
    scheduler=scheduler,
    clip_grad_norm=1.0,
    loader=loader,
    directory=DIRECTORY,
    checkpoint_steps=None if DIRECTORY is None else 20,  # while candidates are tried, too
)
if DIRECTORY is not None and any((DIRECTORY / "checkpoints").glob("[0-9]*")):
    session.load(DIRECTORY / "checkpoints")
    print(f"rank {rank} goes on after {session.step_count} steps", flush=True)

with esper.Interrupt() as interrupt, interrupt.deferred():
    for _ in range(session.epoch, EPOCHS):
        for batch in loader:
            session.step(batch)
            if session.on_any_rank(interrupt.requested):  # all leave after the same step
                if DIRECTORY is not None:
                    session.save(DIRECTORY / "checkpoints")
                print(f"rank {rank} was stopped after {session.step_count} steps", flush=True)
                sys.exit(STOPPED)
        session.after_epoch()
    if not session.is_finished:
        session.finish()
plain = esper.export(model).eval()  # standard torch modules, nothing of Esper inside; all ranks ask together

if rank == 0:
    for report in session.field_reports:
        print(f"{report.blueprint} on {report.layer_id or 'the whole model'}: {report.outcome} ({report.reason})")
    print(f"\n{esper.summary(model)}")
    accuracy = (plain(x_held_out).argmax(1) == y_held_out).float().mean()
    if DIRECTORY is not None:
        torch.save(plain.state_dict(), DIRECTORY / "model.pt")
    print(f"\n{SIZE} ranks: {sum(one.numel() for one in plain.parameters())} parameters, {accuracy:.1%} right")
if SIZE > 1:
    distributed.destroy_process_group()
