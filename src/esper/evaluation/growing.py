"""The grown run itself: a task's host with seeds, under the defaults that are compared with the controls."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.flags import Flags
from esper.contracts.reports import Evaluation
from esper.evaluation.scoring import mean_loss, per_sample
from esper.evaluation.training import SCHEDULES, WEIGHT_DECAY, Epochs
from esper.flags.applied import applied
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import wrap
from esper.kasmina.places.place import Place
from esper.runtime.record.outbox import Listener
from esper.runtime.session import Session
from esper.runtime.training.loader import BatchLoader
from esper.tamiyo.heuristic import Policy
from esper.tasks.task import Task
from esper.tasks.weights import Weights, put_weights


@dataclass(frozen=True)
class Growing:
    """A run that is about to begin, or to go on.

    Attributes:
        model: the wrapped host.
        session: trains it and lets it grow.
        loader: its batches.
        epochs: of the whole run.
    """

    model: nn.Module
    session: Session
    loader: BatchLoader | Epochs
    epochs: int

    def finish(self) -> None:
        """Train to the end."""
        for _ in range(self.session.epoch, self.epochs):
            for batch in self.loader:
                self.session.step(batch)
            self.session.after_epoch()
        self.session.finish()


def growing(
    task: Task,
    config: GrowthConfig,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    schedule: str,
    seed: int,
    steps_per_epoch: int | None = None,
    weights: Weights | None = None,
    evaluate: Callable[[nn.Module], Evaluation] | None = None,
    policy: Policy | None = None,
    directory: Path | None = None,
    checkpoint_steps: int | None = None,
    flags: Flags | None = None,
    on_event: Listener | Iterable[Listener] | None = None,
) -> Growing:
    """Prepare a run: AdamW, the task's host from ``seed`` or from ``weights``.

    Args:
        task: what is learned, on its device and in its precision.
        config: how it may grow.
        epochs: of the run.
        batch_size: samples of a batch.
        lr: peak learning rate.
        schedule: of the learning rate, by its name in :data:`esper.evaluation.training.SCHEDULES`.
        seed: of first weights and order of batches.
        steps_per_epoch: batches of an epoch; None goes through all training samples.
        weights: trained ones that the host begins with; None begins with random ones.
        evaluate: as in :class:`esper.Session`; None measures every held-out sample.
        flags: feature flags of the model; they are applied to ``config``.
        policy, directory, checkpoint_steps, on_event: as in :class:`esper.Session`.

    Raises:
        ConfigError: if the host cannot carry seeds or be compiled, no blueprint fits any of its places, or the weights
            do not fit it.
    """
    config = config if flags is None else applied(flags, config)
    torch.manual_seed(seed)
    host = task.make_host()
    if weights is not None:
        put_weights(host, weights)
    model = wrap(host, config, example=task.example(batch_size))
    if task.is_compiled:
        model.compile(fullgraph=True)
    passes = BatchLoader(task.train, batch_size, seed)
    loader = passes if steps_per_epoch is None else Epochs(passes, steps_per_epoch)
    _check_blueprints(model, config)
    steps = epochs * len(loader)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def measure(model: nn.Module) -> Evaluation:
        losses, correct = per_sample(model, task.held_out, precision=task.precision)
        return Evaluation(losses=losses, correct=correct, groups=task.groups, metric=task.metric)

    try:
        session = Session(
            model,
            optimizer,
            loss=partial(mean_loss, precision=task.precision),
            evaluate=evaluate or measure,
            planned_steps=steps,
            scheduler=LambdaLR(optimizer, lambda step: SCHEDULES[schedule](step / steps)),
            scheduler_every="step",
            loader=loader,
            policy=policy,
            directory=directory,
            checkpoint_steps=checkpoint_steps,
            flags=flags,
            on_event=on_event,
        )
    except RuntimeError as error:  # the model has run for the first time
        if task.is_compiled:
            _refuse_uncompiled(error)
        raise
    return Growing(model, session, loader, epochs)


def _refuse_uncompiled(error: RuntimeError) -> None:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if isinstance(error, TorchDynamoException):
        why = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"torch cannot compile the host as a whole: {why} Run it without --compile, or mend its forward."
        ) from error


def _is_lone(place: Place) -> bool:
    return place.kind != "colony"


def _check_blueprints(model: nn.Module, config: GrowthConfig) -> None:
    """Refuse a run in which nothing could ever grow."""
    misfits: dict[str, str | None] = {}
    for name in config.blueprints:
        blueprint = make_blueprint(name, {})
        reasons = [blueprint.misfit(place.ports_of(blueprint)) for place in sorted(places(model), key=_is_lone)]
        misfits[name] = None if None in reasons else reasons[-1]
    if all(misfits.values()):
        told = "; ".join(f"{name}: {misfit}" for name, misfit in misfits.items())
        raise ConfigError(f"No blueprint fits any place of the host. {told}. Name others in growth.blueprints.")
