"""A residual CNN that grows on handwritten digits, saved in the middle and taken up again.

python examples/cnn.py [EPOCHS]
"""

import sys
import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import esper

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


class Residual(nn.Module):
    """Two convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def network() -> nn.Sequential:
    """A stem, two narrow residual blocks, a head."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        Residual(4),
        nn.MaxPool2d(2),
        Residual(4),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)),
    )


images, targets = load_digits(return_X_y=True)
x, y = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(targets)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = x[order], y[order]


def evaluate(model):
    """One loss per held-out sample, always in the same order."""
    logits = model(x[900:])
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y[900:], reduction="none"), correct=logits.argmax(1) == y[900:]
    )


def session_of(seed: int) -> tuple[esper.Session, esper.BatchLoader, nn.Module]:
    """A run at its start."""
    torch.manual_seed(seed)
    # Both residual blocks and the path around them may grow; "first:last" names a span of a container.
    config = esper.GrowthConfig(layers=["1", "3", "1:3"], max_rounds=1)
    model = esper.wrap(network(), config, example=x[:8])
    optimizer = torch.optim.AdamW(esper.param_groups(model, weight_decay=0.01), lr=1e-2)
    loader = esper.BatchLoader((x[:900], y[:900]), batch_size=32, seed=0)
    session = esper.Session(
        model,
        optimizer,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=evaluate,
        planned_steps=EPOCHS * len(loader),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader)),
        loader=loader,
    )
    return session, loader, model


def train(session: esper.Session, loader: esper.BatchLoader, until: int) -> None:
    """Train up to an epoch."""
    for _ in range(session.epoch, until):
        for batch in loader:
            session.step(batch)
        session.after_epoch()


with tempfile.TemporaryDirectory() as directory:
    session, loader, model = session_of(seed=0)
    train(session, loader, EPOCHS // 2)
    session.save(directory)
    print(f"saved after epoch {session.epoch}")

    # Elsewhere, later: everything that had grown comes back, and so does the place in the data.
    session, loader, model = session_of(seed=1)
    session.load(directory)
    print(f"loaded; {session.step_count} steps were done")
train(session, loader, EPOCHS)
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} on {report.layer_id}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(model)}")
accuracy = evaluate(model.eval()).correct.float().mean()
print(f"\nheld-out accuracy {accuracy:.1%}; growth took {session.probe_flops / session.train_flops:.0%} of all FLOPs")
