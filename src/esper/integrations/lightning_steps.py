"""Steps and evaluations that a Lightning Trainer makes for Esper, beside its own: they leave no trace in it."""

import base64
import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.progress import _BaseProgress
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torchmetrics import Metric

from esper.contracts.errors import ConfigError
from esper.runtime.state.module_state import PLAIN
from esper.runtime.state.random_state import moved_streams, random_state, restore_random_state

Remembered = tuple[Any, bytes]
"""A batch as ``training_step`` had it, and where the Trainer stood before that step, as JSON."""

_TORCHS = frozenset(vars(nn.Module()))
"""What torch itself keeps in every module."""

_CONTAINERS = (list, dict, set)

_WITHIN_STEPS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks that a step calls."""


class TrainerSteps:
    """Training steps of a Trainer, and the same steps taken once more by the Trainer's own machinery.

    Hooks that are called within a step are called again, those of callbacks among them, which may edit gradients.

    Args:
        trainer: a Trainer that fits a module.
        trained: what is captured with the model, callbacks perhaps.
    """

    def __init__(self, trainer: Trainer, trained: Collection[Any]) -> None:
        self._trainer = trainer
        self._callbacks = [
            one
            for one in trainer.callbacks  # type: ignore[attr-defined]
            if any(getattr(type(one), hook) is not getattr(Callback, hook) for hook in _WITHIN_STEPS)
            and all(one is not other for other in trained)
        ]
        self._before: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None

    def about_to_step(self) -> None:
        """Note where the Trainer stands; the random streams only if they were drawn from since :meth:`rest`."""
        trainer, epochs = self._trainer, self._trainer.fit_loop.epoch_loop
        random = random_state()
        is_same = self._random is not None and not moved_streams(self._random, random)
        self._before = {
            "batch_idx": epochs.batch_idx,
            "batches": epochs.total_batch_idx,
            "epoch": trainer.current_epoch,
            "steps": trainer.global_step,
            "accumulate": trainer.accumulate_grad_batches,
            "is_last": epochs.batch_progress.is_last_batch,
            "attributes": _plain(trainer.lightning_module),
            "random": None if is_same else streams_to_text(random),
        }

    def remembered(self, batch: Any) -> Remembered:
        """The step that was just made, so that :meth:`again` can take it."""
        return batch, json.dumps(self._before).encode()

    def rest(self) -> None:
        """The Trainer goes on by itself."""
        self._random = random_state()

    def loss(self, outputs: Any) -> Tensor:
        """Of a step, the mean over the batch, whatever is accumulated.

        Args:
            outputs: what ``on_train_batch_end`` is given.

        Raises:
            ConfigError: if there is none.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if not isinstance(loss, Tensor):
            raise ConfigError(
                "training_step gave no loss. Esper has to know the loss of every step: return it, also where you "
                "optimize manually; a batch cannot be skipped by returning None."
            )
        is_share = self._trainer.lightning_module.automatic_optimization
        return loss.detach() * self._trainer.accumulate_grad_batches if is_share else loss.detach()

    def again(self, remembered: Remembered) -> Tensor:
        """Take a step once more: forward, backward, clipping and optimizer as the Trainer does it.

        Returns:
            Its loss.
        """
        batch, moment = remembered
        before, trainer = json.loads(moment), self._trainer
        module, epochs = trainer.lightning_module, trainer.fit_loop.epoch_loop
        with aside(trainer, RunningStage.TRAINING, self._callbacks) as results, ExitStack() as last:
            results.batch = batch
            last.callback(setattr, trainer, "accumulate_grad_batches", trainer.accumulate_grad_batches)
            trainer.accumulate_grad_batches = before["accumulate"]
            trainer.fit_loop.epoch_progress.current.load_state_dict({"processed": before["epoch"]})
            epochs.batch_progress.current.ready = before["batch_idx"] + 1
            epochs.batch_progress.total.ready = before["batches"] + 1
            epochs.batch_progress.is_last_batch = before["is_last"]
            epochs.automatic_optimization.optim_progress.optimizer.step.total.completed = before["steps"]
            epochs.manual_optimization.optim_step_progress.total.completed = before["steps"]
            vars(module).update(before["attributes"])
            if before["random"] is not None:
                restore_random_state(streams_from_text(before["random"]))
            kwargs = epochs._build_kwargs(OrderedDict(), batch, before["batch_idx"])
            if module.automatic_optimization:
                outputs = epochs.automatic_optimization.run(trainer.optimizers[0], before["batch_idx"], kwargs)
            else:
                outputs = epochs.manual_optimization.run(kwargs)
            return self.loss(outputs)


@contextmanager
def aside(trainer: Trainer, stage: RunningStage, callbacks: Iterable[Callback] = ()) -> Iterator[_ResultCollection]:
    """Whatever is logged, counted, profiled or collected inside is forgotten.

    Plain attributes, lists, dicts and sets of the module and of callbacks are put back, metrics of the module, and the
    Trainer's counters. A logger that is asked for inside swallows what it is told.

    Args:
        trainer: a Trainer that fits a module.
        stage: TRAINING or VALIDATING.
        callbacks: that may be called inside.

    Returns:
        Takes what is logged inside.
    """
    module, connector, epochs = trainer.lightning_module, trainer._logger_connector, trainer.fit_loop.epoch_loop
    loop = epochs if stage is RunningStage.TRAINING else epochs.val_loop
    quiet = {"loggers": [DummyLogger() for _ in trainer.loggers], "profiler": PassThroughProfiler()}
    kept = {name: getattr(trainer, name) for name in (*quiet, "should_stop")}
    running, results, told = trainer.state.stage, loop._results, {**vars(connector)}
    counters = [(one, one.state_dict()) for one in _counters(trainer)]
    with ExitStack() as keeping:
        for owner in (module, *callbacks):
            keeping.enter_context(_attributes_kept(owner))
        keeping.enter_context(_metrics_kept(module))
        try:
            loop._results = _ResultCollection(training=stage is RunningStage.TRAINING)
            vars(connector).update({name: copy(one) for name, one in told.items() if type(one) in _CONTAINERS})
            for name, value in quiet.items():
                setattr(trainer, name, value)
            trainer.state.stage = stage
            yield loop._results
        finally:
            trainer.state.stage = running
            for name, value in kept.items():
                setattr(trainer, name, value)
            for one, state in counters:
                one.load_state_dict(state)
            vars(connector).update(told)
            loop._results = results


def streams_to_text(random: dict[str, Any]) -> str:
    """The state of all random streams, as text."""
    kind, key, *rest = random["numpy"]
    return json.dumps(
        {
            "torch": _to_text(random["torch"].numpy()),
            "cuda": [_to_text(state.numpy()) for state in random["cuda"]],
            "numpy": [kind, _to_text(key), *rest],
            "python": random["python"],
        }
    )


def streams_from_text(text: str) -> dict[str, Any]:
    """Inverse of :func:`streams_to_text`."""
    random = json.loads(text)
    kind, key, *rest = random["numpy"]
    version, internal, gauss = random["python"]
    return {
        "torch": torch.from_numpy(_from_text(random["torch"], np.uint8)),
        "cuda": [torch.from_numpy(_from_text(state, np.uint8)) for state in random["cuda"]],
        "numpy": (kind, _from_text(key, np.uint32), *rest),
        "python": (version, tuple(internal), gauss),
    }


def _to_text(values: Any) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _from_text(text: str, dtype: Any) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype).copy()


def _counters(trainer: Trainer) -> list[_BaseProgress]:
    epochs = trainer.fit_loop.epoch_loop
    return [
        trainer.fit_loop.epoch_progress,
        epochs.batch_progress,
        epochs.automatic_optimization.optim_progress,
        epochs.manual_optimization.optim_step_progress,
    ]


def _plain(owner: Any) -> dict[str, Any]:
    """Plain attributes of a module itself, or of a callback."""
    return {name: value for name, value in vars(owner).items() if type(value) in PLAIN and name not in _TORCHS}


@contextmanager
def _attributes_kept(owner: Any) -> Iterator[None]:
    own, plain = vars(owner), _plain(owner)
    containers = [
        (name, one, copy(one)) for name, one in own.items() if type(one) in _CONTAINERS and name not in _TORCHS
    ]
    try:
        yield
    finally:
        own.update(plain)
        for name, one, before in containers:
            own[name] = one
            one.clear()
            if isinstance(one, list):
                one.extend(before)
            else:
                one.update(before)


@contextmanager
def _metrics_kept(module: LightningModule) -> Iterator[None]:
    metrics = [one for one in module.modules() if isinstance(one, Metric)]
    before = [{name: _own(state) for name, state in one.metric_state.items()} for one in metrics]
    counts = [(one._update_count, one._computed, one._forward_cache) for one in metrics]
    try:
        yield
    finally:
        for one, states, count in zip(metrics, before, counts, strict=True):
            for name, state in states.items():
                setattr(one, name, state)
            one._update_count, one._computed, one._forward_cache = count


def _own(state: Any) -> Any:
    """A metric's state in memory of its own: one tensor, or a list of what it was shown."""
    return state.detach().clone() if isinstance(state, Tensor) else [*state]
