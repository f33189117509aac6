"""Small models of transformers, data for them, and trainers that train them with and without growth."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.integrations.growth_trainer import GrowthTrainer

VOCABULARY = 11
SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        config: of the model.
        auto: class that builds it.
        place: where it is to grow.
    """

    config: Callable[[], Any]
    auto: Any
    place: str

    def host(self) -> nn.Module:
        torch.manual_seed(0)
        return self.auto.from_config(self.config())


TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
KINDS = {
    "bert": Kind(
        lambda: transformers.BertConfig(**TEXT, **SMALL, **DROPOUT, num_labels=3, max_position_embeddings=16),
        transformers.AutoModelForSequenceClassification,
        "bert.encoder.layer.1",
    ),
    "gpt2": Kind(
        lambda: transformers.GPT2Config(**TEXT, n_embd=8, n_layer=2, n_head=2, n_positions=16),
        transformers.AutoModelForCausalLM,
        "transformer.h.1",
    ),
    "llama": Kind(
        lambda: transformers.LlamaConfig(**TEXT, **SMALL, max_position_embeddings=16),
        transformers.AutoModelForCausalLM,
        "model.layers.0",
    ),
    "vit": Kind(
        lambda: transformers.ViTConfig(**SMALL, **DROPOUT, image_size=4, patch_size=2, num_channels=1, num_labels=3),
        transformers.AutoModelForImageClassification,
        "vit.layers.1",
    ),
}


def data(kind: str, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Samples of a kind of model."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "vit":
        images = torch.randn(count, 1, 4, 4, generator=generator)
        return [{"pixel_values": one, "labels": (one[0, 0].norm() > 1.3).long()} for one in images]
    tokens = torch.randint(1, VOCABULARY, (count, 6), generator=generator)
    if kind == "bert":
        return [{"input_ids": one, "labels": one[:2].sum() % 3} for one in tokens]
    masked = [one.where(torch.arange(6) > position % 3, -100) for position, one in enumerate(tokens)]
    return [{"input_ids": one, "labels": labels} for one, labels in zip(tokens, masked, strict=True)]


@dataclass
class Script:
    """A policy that germinates at places when given epochs end."""

    plan: dict[int, list[str]]
    blueprint: str = "bottleneck_mlp"
    settings: tuple[tuple[str, Any], ...] = (("hidden", 4),)

    def decide(self, observation: Observation) -> list[Command]:
        return [
            Command(
                place, "all", State.GERMINATED, blueprint=self.blueprint, settings=dict(self.settings), trial="round"
            )
            for place in self.plan.get(observation.epoch, [])
        ]


STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 5, 4


def arguments(path: Path, **others: Any) -> transformers.TrainingArguments:
    """Of a run of 20 updates."""
    mine = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "log_level": "error",
    }
    return transformers.TrainingArguments(str(path), **mine | others)


def parts(kind: str, args: transformers.TrainingArguments) -> dict[str, Any]:
    """Arguments of a Trainer, but for the model."""
    count = BATCH * STEPS_PER_EPOCH * args.gradient_accumulation_steps
    return {"args": args, "train_dataset": data(kind, count, 1), "eval_dataset": data(kind, 16, 2)}


def settings(kind: str, **others: Any) -> esper.GrowthConfig:
    mine = {
        "layers": [KINDS[kind].place],
        "seeds_per_layer": 1,
        "colonies": [],
        "round_fraction": 0.3,
        "ramp_fraction": 0.05,
        "compare": "steps",
        "max_growth": 20.0,
        "embargo_epochs": 1,
    }
    return esper.GrowthConfig(**mine | others)


def example(kind: str) -> dict[str, Tensor]:
    return {name: one[None] for name, one in data(kind, 1, 3)[0].items() if name != "labels"}


def growing(
    kind: str,
    args: transformers.TrainingArguments,
    policy: Any = None,
    growth: dict[str, Any] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> GrowthTrainer:
    """A trainer of a model that grows at the end of the first epoch."""
    model = KINDS[kind].host() if model is None else model
    esper.wrap(model, settings(kind, **growth or {}), example=example(kind))
    policy = policy or Script({1: [KINDS[kind].place]})
    given = parts(kind, args) | {"growth_options": {"policy": policy}} | options
    return GrowthTrainer(model=model, **given)
