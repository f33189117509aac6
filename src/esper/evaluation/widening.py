"""The classic way to grow, as a control: make the hidden layers wider in the middle of training.

New hidden units get random incoming and zero outgoing weights, so that the function stays what it was ("random-in,
zero-out"; cf. Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016, and Yuan et al., "Accelerated training via
incrementally growing neural networks", NeurIPS 2023).
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, search, width_factor
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.row import Row
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of, train
from esper.tasks.task import Task


def widened(task: Task, train_flops: int, parameters: int, birth_step: int, setting: Setting) -> Row:
    """The host trained for ``birth_step`` steps, widened to ``parameters``, trained on until ``train_flops`` are spent.

    Learning rate and schedule are searched as for the other controls; the schedule spans the whole run.
    """
    factor = max(1.0, width_factor(task, parameters))

    def run(recipe: Recipe, curve: LearningCurve) -> tuple[nn.Module, int]:
        source = batches(task, setting.batch_size, setting.seed)
        probe = next(batches(task, setting.batch_size, setting.seed))
        model = task.make_host()
        optimizer = optimizer_of(model)
        wide = task.make_host(width_factor=factor)
        cost, wide_cost = flops_per_step(model, probe), flops_per_step(wide, probe)
        steps = birth_step + max(0, round((train_flops - birth_step * cost) / wide_cost))
        train(model, optimizer, source, recipe, range(birth_step), steps, curve, cost)
        wide_optimizer = optimizer_of(wide)
        transplant(model, optimizer, wide, wide_optimizer)
        train(wide, wide_optimizer, source, recipe, range(birth_step, steps), steps, curve, wide_cost)
        return wide, birth_step * cost + (steps - birth_step) * wide_cost

    return search(task, setting, run)


@torch.no_grad()
def transplant(old: nn.Module, old_optimizer: Optimizer, wide: nn.Module, wide_optimizer: Optimizer) -> None:
    """Put a chain of Linear layers into a wider one: the same function, the same optimizer state where weights are old.

    What is new keeps the wide model's own random weights, but for the weights that lead from new hidden units to old
    ones, which become zero.

    Raises:
        ConfigError: if ``wide`` has another depth or is narrower anywhere.
    """
    narrow, broad = [list(model.parameters()) for model in (old, wide)]
    fits = [p.dim() for p in narrow] == [p.dim() for p in broad]
    if not fits or any(
        a > b for p, q in zip(narrow, broad, strict=True) for a, b in zip(p.shape, q.shape, strict=True)
    ):
        raise ConfigError("Only a chain of the same depth and of at least the same widths can take a host's place.")
    for small, large in zip(narrow, broad, strict=True):
        if large.dim() == 2:
            large[: small.shape[0], small.shape[1] :] = 0
        large[_block(small)] = small
        wide_optimizer.state[large] = {
            name: _padded(value, large) if value.shape == small.shape else value.clone()
            for name, value in old_optimizer.state[small].items()
        }


def _block(small: Tensor) -> tuple[slice, ...]:
    return tuple(slice(length) for length in small.shape)


def _padded(value: Tensor, large: Tensor) -> Tensor:
    padded = torch.zeros_like(large)
    padded[_block(value)] = value
    return padded
