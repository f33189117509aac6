"""What is trained: a model like GPT-2 from its configuration, tokens in which there is something to learn, and where it
grows."""

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.kasmina.host.anchoring import is_espers

STEPS, BOUNDARY, SAVED = 60, 10, 20
"""Updates of a run, after how many it decides, and when it saves: within the window of its round."""

TRIALS = {BOUNDARY: "round", 3 * BOUNDARY: "live"}
"""When something is to grow, and how."""


@dataclass(frozen=True)
class Size:
    """Of the model and its batches."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    batch: int
    held_out: int


SMALL = Size(width=16, layers=2, heads=2, vocabulary=31, context=8, batch=2, held_out=16)
LARGE = Size(width=768, layers=12, heads=12, vocabulary=50257, context=512, batch=8, held_out=64)


def size() -> Size:
    return LARGE if torch.cuda.is_available() else SMALL


def host() -> nn.Module:
    return copy.deepcopy(_host())


@cache
def _host() -> nn.Module:
    one = size()
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=one.width,
        n_layer=one.layers,
        n_head=one.heads,
        n_positions=one.context,
        vocab_size=one.vocabulary,
        bos_token_id=0,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="eager",  # others do not come to the same bytes twice
    )
    return GPT2LMHeadModel(config)


def place() -> str:
    return f"transformer.h.{size().layers // 2}"


def wrapped(*, grows: bool) -> nn.Module:
    """The same with seeds."""
    config = esper.GrowthConfig(
        layers=[place()],
        seeds_per_layer=1,
        colonies=[],
        boundary_steps=BOUNDARY if grows else 10**9,  # steps are compared, not evaluations
        round_fraction=0.25,
        ramp_fraction=0.05,
        keep_looks=(0.8,),
        compare="steps",
        max_growth=20.0,
        min_targets=0,
        gate_z=1e-6,
        grow_until=0.8,
        max_rounds=2 if grows else 0,
        embargo_epochs=0,
    )
    example = {"input_ids": torch.zeros(1, size().context, dtype=torch.long)}
    return esper.wrap(host(), config, example=example)


class Script:
    """A policy that asks for a graft in a round, and later for one in the run itself."""

    def decide(self, observation: Observation) -> list[Command]:
        if (trial := TRIALS.get(observation.step)) is None:
            return []
        hidden = {"hidden": size().width // 4}
        return [Command(place(), "all", State.GERMINATED, blueprint="bottleneck_mlp", settings=hidden, trial=trial)]


@cache
def samples(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Every token follows from the one before, but for one in eight."""
    one, generator = size(), torch.Generator().manual_seed(seed)
    rows = torch.randint(one.vocabulary, (count, one.context), generator=generator)
    for at in range(1, one.context):
        follows = torch.rand(count, generator=generator) > 1 / 8
        rows[:, at] = torch.where(follows, (3 * rows[:, at - 1] + 1) % min(one.vocabulary, 97), rows[:, at])
    return [{"input_ids": row, "labels": row} for row in rows]


def digest(tensors: Iterable[tuple[str, Tensor]], *, with_grafts: bool) -> str:
    """Of all bytes; those of the host alone without grafts."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        if with_grafts or not is_espers(name):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
