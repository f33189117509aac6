"""How wrong a model is: on a batch, to learn from, and sample by sample, to be judged by."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.task import Samples

CHUNK = 8192
"""Predictions made at once."""


def cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean cross entropy of a batch ``(x, y)``, over samples, and over the tokens of each where it has several."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


@torch.no_grad()
def per_sample(model: nn.Module, samples: Samples) -> tuple[Tensor, Tensor]:
    """Cross entropy and share of right predictions of every sample, both float32 ``[n]``, in eval mode.

    A window of a text counts as one sample: both are means over its tokens.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    losses, correct = [], []
    rows = max(1, CHUNK // samples.y[0].numel())
    try:
        for x, y in zip(samples.x.split(rows), samples.y.split(rows), strict=True):
            logits = model(x)
            loss = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
            losses.append(loss.view(len(y), -1).mean(1))
            correct.append((logits.argmax(-1) == y).float().view(len(y), -1).mean(1))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(losses), torch.cat(correct)
