"""LoRA through peft: the host is trained, then frozen, and low-rank adapters on its linear layers are trained on.

Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, as peft means it: the base stays frozen,
no other module is trained or saved beside the adapters. The adapters are born when the first graft of the grown run
was. They are left unmerged, so the row counts their parameters too; merged they would cost a user none.
"""

import copy
import os

from torch import nn

from benchmarks.growth.peers.budget import Budget
from benchmarks.growth.peers.goal import Goal
from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of
from esper.tasks.task import Task


def lora(task: Task, goal: Goal, setting: Setting, recipe: Recipe, curve: LearningCurve) -> tuple[nn.Module, int]:
    """A host from the global random state, trained, and then adapted by LoRA.

    Returns:
        The model with its adapters, and its training FLOPs.

    Raises:
        ConfigError: if the host has no linear layer.
    """
    host = task.make_host()
    source = batches(task, setting.batch_size, setting.seed)
    sample = next(batches(task, setting.batch_size, setting.seed))
    budget = Budget(goal.train_flops, recipe, curve)
    cost = flops_per_step(host, sample)
    budget.train(host, optimizer_of(host), source, budget.steps_until(goal.birth, cost), cost)
    model = _adapted(host, _rank(host, goal.parameters))
    cost = flops_per_step(model, sample)
    budget.train(model, optimizer_of(model), source, max(1, budget.steps_until(1.0, cost)), cost)
    return model, budget.spent


def _rank(host: nn.Module, parameters: int) -> int:
    """The rank, one for all layers, at which host and adapters come closest to ``parameters``."""
    size = _size(host)
    of_one_rank = _size(_adapted(copy.deepcopy(host), 1)) - size
    return max(1, round((parameters - size) / of_one_rank))


def _adapted(host: nn.Module, rank: int) -> nn.Module:
    """``host``, which is changed in place, frozen and with an adapter at every linear layer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when peft is imported: it has nothing to ask of the hub
    from peft import LoraConfig, get_peft_model

    names = [name for name, module in host.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError("LoRA is compared on linear layers, and the host has none.")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0, bias="none")
    return get_peft_model(host, config)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
