"""How wrong a model is: on a batch, to learn from, and sample by sample, to be judged by.

Which loss it is follows from what is predicted: cross entropy for whole numbers ``y`` (codes of classes, tokens), the
squared error for a quantity, float ``[n]``, and the mean binary cross entropy for labels of 0 and 1, float
``[n, labels]``.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.contracts.errors import EvaluationError
from esper.tasks.task import Precision, Samples, Task, as_given

CHUNK = 8192
"""Predictions made at once."""


def mean_loss(model: nn.Module, batch: tuple[Tensor, ...], precision: Precision = "fp32") -> Tensor:
    """Mean loss of a batch ``(x, y)``, over samples, and over tokens or labels of each where it has several."""
    x, y = batch
    outputs = _outputs(model, x, precision)
    if not y.is_floating_point():
        return F.cross_entropy(outputs.flatten(0, -2), as_given(y).flatten())
    return _elementwise(outputs, y).mean()


@torch.no_grad()
def per_sample(
    model: nn.Module, samples: Samples, among: Tensor | None = None, precision: Precision = "fp32"
) -> tuple[Tensor, Tensor]:
    """Loss and score of every sample, both float32 ``[n]`` on the CPU, in eval mode.

    The score is the share of right predictions; a window of a text counts as one sample, and so do all labels of one.
    Of a quantity it is ``1 - loss / variance``, at most 1 and negative where the mean would be nearer: its mean over
    samples is R2, the coefficient of determination.

    Args:
        model: gives predictions.
        samples: to predict.
        among: the targets whose variance it is; None takes those of ``samples``.
        precision: of the forward pass.
    """
    losses, scores = [], []
    for y, outputs in _predictions(model, samples, precision):
        if not y.is_floating_point():
            loss = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="none")
            losses.append(loss.view(len(y), -1).mean(1))
            scores.append((outputs.argmax(-1) == y).float().view(len(y), -1).mean(1))
        else:
            losses.append(_elementwise(outputs, y).view(len(y), -1).mean(1))
            scores.append(((outputs > 0) == (y > 0.5)).float().view(len(y), -1).mean(1) if y.dim() == 2 else losses[-1])
    loss, score = torch.cat(losses), torch.cat(scores)
    if samples.y.is_floating_point() and samples.y.dim() == 1:
        variance = (samples.y if among is None else among).double().var(correction=0).clamp(min=1e-12)
        score = (1 - loss.double() / variance).float()
    return loss.cpu(), score.cpu()


@torch.no_grad()
def further_measures(model: nn.Module, task: Task, losses: Tensor) -> dict[str, float]:
    """What else is told of the test samples: the error of a quantity in its own units, macro F1 of several labels.

    Args:
        model: trained.
        task: what it learned.
        losses: of the test samples.
    """
    if task.scale is not None:
        return {"RMSE": task.scale.std * float(losses.double().mean().sqrt())}
    if task.kind == "multilabel":
        predicted = torch.cat([outputs > 0 for _, outputs in _predictions(model, task.test, task.precision)])
        return {"macro F1": macro_f1(predicted, task.test.y > 0.5)}
    return {}


def macro_f1(predicted: Tensor, true: Tensor) -> float:
    """Mean over labels of ``2 TP / (2 TP + FP + FN)``; 0 for one that is neither there nor predicted.

    Args:
        predicted: bool ``[n, labels]``.
        true: bool ``[n, labels]``.
    """
    hits, total = (predicted & true).sum(0).double(), (predicted.sum(0) + true.sum(0)).double()
    return float((2 * hits / total.clamp(min=1)).mean())


def _elementwise(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.numel() != y.numel():
        raise EvaluationError(f"The network gives {list(outputs.shape)} for targets of shape {list(y.shape)}.")
    loss = F.mse_loss if y.dim() == 1 else F.binary_cross_entropy_with_logits
    return loss(outputs.reshape(y.shape), y, reduction="none")


def _outputs(model: nn.Module, x: Tensor, precision: Precision) -> Tensor:
    """What the model says; in float32 where it was computed in bfloat16, so that a loss sums without its rounding."""
    if precision == "fp32":
        outputs: Tensor = model(as_given(x))
        return outputs
    with torch.autocast(x.device.type, torch.bfloat16):
        outputs = model(as_given(x))
    return outputs.float()


def _predictions(model: nn.Module, samples: Samples, precision: Precision) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets and outputs, some samples at a time, in eval mode; the model is left as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    rows = max(1, CHUNK // samples.y[0].numel())
    try:
        for x, y in zip(samples.x.split(rows), samples.y.split(rows), strict=True):
            yield as_given(y), _outputs(model, x, precision)
    finally:
        for module, mode in modes.items():
            module.training = mode
