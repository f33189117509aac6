"""A LightningModule that grows: wrap its network, and give the Trainer a callback.

python examples/lightning_module.py [EPOCHS]
"""

import logging
import math
import sys

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.integrations.lightning import GrowthCallback

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def spirals(count: int, seed: int) -> TensorDataset:
    """Points of three arms that wind around each other, with the arm of each."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * (arm / 3 + 0.8 * radius) + 0.15 * torch.randn(count, generator=generator)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm)


class Classifier(lightning.LightningModule):
    """An ordinary module; the call of esper.wrap is all that it has of Esper."""

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
        config = esper.GrowthConfig(seeds_per_layer=4, capacity_per_round=2.0, max_growth=4.0)
        self.net = esper.wrap(net, config, example=torch.zeros(8, 2))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = F.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        logits = self.net(inputs)
        loss = F.cross_entropy(logits, targets)
        self.log_dict({"held-out loss": loss, "accuracy": (logits.argmax(1) == targets).float().mean()})
        return loss  # growth is judged by it, sample by sample

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


lightning.seed_everything(0, verbose=False)
module, growth = Classifier(), GrowthCallback()
trainer = lightning.Trainer(
    max_epochs=EPOCHS,
    callbacks=[growth],
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
held_out = DataLoader(spirals(1000, seed=2), batch_size=250)
trainer.fit(module, DataLoader(spirals(1200, seed=1), batch_size=32, shuffle=True), held_out)

print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
for report in growth.session.field_reports:
    print(f"{report.blueprint} on {report.layer_id or 'the whole network'}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(module.net)}")

plain = esper.export(module.net).eval()  # standard torch modules, nothing of Esper inside
x, _ = held_out.dataset.tensors
assert torch.allclose(plain(x), module.net.eval()(x), atol=1e-5)
print(f"\nexported: {sum(parameter.numel() for parameter in plain.parameters())} parameters in plain torch")
