"""What ranks are made to do, each by name; all ranks do the same and tell what they have come to."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import esper
from esper.checkpoint import store
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import RankError
from esper.shards import whole
from tests.runtime import toy
from tests.runtime.toy import Script, growing
from tests.tree_digest import tree_digest

EPOCHS, FEW = 20, 8
"""Of a run with late germinations, and of one in which one graft grows."""


HALF = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)}
"""Half precision, as ``fully_shard`` takes it."""


def share(batch: tuple[Tensor, Tensor], rank: int, size: int) -> tuple[Tensor, Tensor]:
    """The samples of a batch that a rank trains on."""
    x, y = batch
    return x[rank::size].double(), y[rank::size]


def evaluate(model: nn.Module) -> esper.Evaluation:
    logits = model(toy.DATA.held_x.double())
    return esper.Evaluation(
        losses=nn.functional.cross_entropy(logits, toy.DATA.held_y, reduction="none"),
        correct=(logits.argmax(1) == toy.DATA.held_y).double(),
    )


def evaluate_share(rank: int, size: int) -> Callable[[nn.Module], esper.Evaluation]:
    """Each rank has held-out samples of its own, all those of one process in order."""

    def evaluate(model: nn.Module) -> esper.Evaluation:
        rows = slice(len(toy.DATA.held_x) * rank // size, len(toy.DATA.held_x) * (rank + 1) // size)
        logits, targets = model(toy.DATA.held_x[rows].double()), toy.DATA.held_y[rows]
        return esper.Evaluation(losses=nn.functional.cross_entropy(logits, targets, reduction="none"))

    return evaluate


def batches(rank: int, size: int, epochs: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    for epoch in range(epochs):
        yield [share(batch, rank, size) for batch in toy.batches(epoch)]


def built(
    size: int,
    config: GrowthConfig,
    policy: Script,
    epochs: int,
    *,
    batch_norm: bool = False,
    options: Any = None,
    shard: Any = None,
    **session: Any,
) -> esper.Session:
    """A session on the toy model in double precision, in which rounding does not tell ranks from one another.

    ``options`` are those of ``DistributedDataParallel``. With ``shard``, options of ``fully_shard``, parameters are
    spread over ranks in its place.
    """
    host = toy.host(batch_norm=batch_norm)
    model = esper.wrap(host if shard == HALF else host.double(), config)
    called = distributed_over(model, size, options, shard)
    optimizer, steps = AdamW(model.parameters(), lr=0.03), epochs * toy.STEPS_PER_EPOCH
    arguments: dict[str, Any] = {"evaluate": evaluate, "planned_steps": steps, "policy": policy}
    if "train_step" in session:
        session["train_step"] = session["train_step"](called, optimizer)
    else:
        arguments |= {"loss": toy.loss, "scheduler": CosineAnnealingLR(optimizer, steps)}
    return esper.Session(called, optimizer, **arguments | session)


def distributed_over(model: nn.Module, size: int, options: Any = None, shard: Any = None) -> nn.Module:
    """What a loss calls, with ranks."""
    if shard is not None:
        for layer in (one for one in model if isinstance(one, nn.Linear)):
            fully_shard(layer, **shard)
        return fully_shard(model, **shard)
    return DistributedDataParallel(model, **(options or {})) if size > 1 else model


def trained(session: esper.Session, rank: int, size: int, epochs: int) -> dict[str, Any]:
    """Train to the end, and tell."""
    for epoch in batches(rank, size, epochs):
        for batch in epoch:
            session.step(batch)
        session.after_epoch()
    session.finish()
    return told(session)


def digest(state: Mapping[str, Any]) -> str:
    return tree_digest({key: whole(value) for key, value in state.items()})


def told(session: esper.Session) -> dict[str, Any]:
    """What a run has come to, and all that was decided on the way."""
    moves = [
        (one["step"], one["layer_id"], one["seed_id"], one["source"], one["target"], one["arm"])
        for one in session.events
        if one["event"] == "transition"
    ]
    model = session._run.model
    return {
        "digest": digest(model.state_dict()),
        "weights": [whole(one).detach().flatten().tolist() for one in model.parameters()],
        "moves": moves,
        "losses": [one["val_loss"] for one in session.events if one["event"] == "epoch"],
        "flops": session.train_flops,
    }


def grown(rank: int, size: int, **options: Any) -> dict[str, Any]:
    """Three rounds, late ones too; each graft that is adopted becomes a fossil."""
    config = growing(layers=["", "0", "2"], round_fraction=0.2)
    policy = Script({1: [""], 8: ["0"], 13: ["2"]})
    return trained(built(size, config, policy, EPOCHS, clip_grad_norm=0.5, **options), rank, size, EPOCHS)


def once(rank: int, size: int, objective: str = "none", **options: Any) -> dict[str, Any]:
    """One round."""
    config = growing(objective=objective)
    return trained(built(size, config, Script({1: [""]}), FEW, **options), rank, size, FEW)


def shards(rank: int, size: int) -> dict[str, Any]:
    """One round, judged by samples that no rank has all of."""
    held_out = {"held_out": "shards"} if size > 1 else {}
    return once(rank, size, evaluate=evaluate_share(rank, size), **held_out)


def apart(rank: int, size: int) -> str:
    """Rank 1 ends an epoch where rank 0 saves."""
    session = built(size, growing(), Script({}), FEW)
    with tempfile.TemporaryDirectory() as folder:
        try:
            session.after_epoch() if rank == 1 else session.load(session.save(folder).parent)
        except RankError as error:
            return str(error)
    return "nothing was noticed"


def asked(rank: int, size: int) -> list[bool]:
    """Rank 1 is to stop, then nobody."""
    session = built(size, growing(), Script({}), FEW)
    return [session.on_any_rank(rank == 1), session.on_any_rank(False)]


def live(rank: int, size: int, **options: Any) -> dict[str, Any]:
    """A live trial, through ``train_step`` that accumulates without averaging in between."""

    def train_step(called: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Any], Tensor]:
        def step(batch: Any) -> Tensor:
            optimizer.zero_grad()
            halves = list(zip(*(part.chunk(2) for part in batch), strict=True))
            total = torch.zeros(())
            for index, half in enumerate(halves):
                is_last = index == len(halves) - 1
                if "shard" in options:
                    called.set_requires_gradient_sync(is_last)
                with nullcontext() if is_last or size == 1 or "shard" in options else called.no_sync():
                    loss = toy.loss(called, half) / len(halves)
                    loss.backward()
                total = total + loss.detach()
            esper.clip_grad_norm_(called.parameters(), 0.5)
            optimizer.step()
            return total

        return step

    policy = Script({1: [""]}, trial="live")
    session = built(size, growing(round_fraction=0.2), policy, FEW, train_step=train_step, **options)
    return trained(session, rank, size, FEW)


def bare(rank: int, size: int, shard: Any = None) -> str:
    """The model without Esper."""
    model = toy.host(batch_norm=True).double()
    called = distributed_over(model, size, shard=shard)
    optimizer = AdamW(model.parameters(), lr=0.03)
    scheduler = CosineAnnealingLR(optimizer, 4 * toy.STEPS_PER_EPOCH)
    for epoch in batches(rank, size, 4):
        for batch in epoch:
            toy.loss(called, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return digest(model.state_dict())


def dormant(rank: int, size: int, **options: Any) -> str:
    """With seeds that sleep."""
    session = built(size, growing(), Script({}), 4, batch_norm=True, clip_grad_norm=0.5, **options)
    for epoch in batches(rank, size, 4):
        for batch in epoch:
            session.step(batch)
        session.after_epoch()
    return digest(esper.host_state_dict(session._run.model))


def saving(rank: int, size: int, folder: str, how: str, ends_at: int = FEW) -> esper.Session:
    """A session that has trained until the end of an epoch, from its last checkpoint if it has any; ``how`` may be
    ``"sharded"``."""
    config = growing(layers=["", "0"], round_fraction=0.25)
    policy = Script({1: [""], 5: ["0"]})
    directory = Path(folder)
    shard = {} if how == "sharded" else None
    session = built(size, config, policy, FEW, directory=directory, checkpoint_steps=3, shard=shard)
    if any((directory / "checkpoints").glob("[0-9]*")):
        session.load(directory / "checkpoints")
    for epoch, given in enumerate(batches(rank, size, ends_at)):
        for index, batch in enumerate(given):
            if epoch * toy.STEPS_PER_EPOCH + index >= session.step_count:
                session.step(batch)
        if epoch >= session.epoch:
            session.after_epoch()
    return session


def interrupted(rank: int, size: int, folder: str, how: str, at: str) -> None:
    """Rank 1 dies in the middle of its next checkpoint from a step on, so that rank 0 is a generation ahead."""
    if rank == 1:
        write = store.write

        def dies(path: Path, tree: Any, at_least: int) -> Path:
            if tree["clock"]["step"] >= int(at):
                os._exit(1)
            return write(path, tree, at_least)

        store.write = dies
    saving(rank, size, folder, how)


def finished(rank: int, size: int, folder: str, how: str) -> dict[str, Any]:
    """To the end, from wherever it stands."""
    session = saving(rank, size, folder, how)
    session.finish()
    return told(session)


def half(rank: int, size: int, folder: str, how: str) -> dict[str, Any]:
    return told(saving(rank, size, folder, how, ends_at=FEW // 2))


def quarter(rank: int, size: int, folder: str, how: str) -> dict[str, Any]:
    return told(saving(rank, size, folder, how, ends_at=FEW // 4))


ALL: dict[str, Callable[..., Any]] = {
    "bare": bare,
    "dormant": dormant,
    "grown": grown,
    "live": live,
    "static graph": lambda rank, size: once(rank, size, options={"static_graph": True}),
    "bucket view": lambda rank, size: once(rank, size, options={"gradient_as_bucket_view": True}),
    "trained alone": lambda rank, size: once(rank, size, "pseudo_residual"),
    "shards": shards,
    "apart": apart,
    "asked": asked,
    "interrupted": interrupted,
    "finished": finished,
    "half": half,
    "quarter": quarter,
    "sharded grown": lambda rank, size: grown(rank, size, shard={}),
    "sharded live": lambda rank, size: live(rank, size, shard={}),
    "sharded bare": lambda rank, size: bare(rank, size, shard={}),
    "sharded dormant": lambda rank, size: dormant(rank, size, shard={}),
    "sharded half": lambda rank, size: once(rank, size, shard=HALF),
    "batch norm": lambda rank, size: once(rank, size, batch_norm=True),
}
