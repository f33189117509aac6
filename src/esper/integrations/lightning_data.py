"""Where the data of a Lightning Trainer stand: held-out losses, and training batches in the order of a run that was
cut."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from esper.contracts.errors import ConfigError
from esper.contracts.reports import Evaluation
from esper.integrations.lightning_steps import aside, streams_from_text, streams_to_text
from esper.integrations.sample_losses import SampleLosses
from esper.runtime.state.random_state import random_state, restore_random_state
from esper.runtime.training.loader import BatchLoader

SampleLossesOf = Callable[[Any, Any], Tensor]
"""``losses(module, batch)``: one loss per sample of a held-out batch, of shape (samples,)."""

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class HeldOut:
    """Losses of all held-out samples, for :class:`esper.Session`.

    Args:
        trainer: a Trainer that fits a module; its validation data are loaded here if they were not yet.
        losses: of a batch; None takes the mean loss that ``validation_step`` returns, sample by sample.

    Attributes:
        are_shares: whether each rank has samples of its own.

    Raises:
        ConfigError: if there are no validation data, or they are shuffled.
    """

    def __init__(self, trainer: Trainer, losses: SampleLossesOf | None) -> None:
        self._trainer, self._losses = trainer, losses
        if not trainer.enable_validation:
            raise ConfigError(
                "The Trainer has no validation data, by which growth is judged. Give trainer.fit a loader of held-out "
                "samples and the module a validation_step that returns its loss, and leave limit_val_batches."
            )
        loop = trainer.fit_loop.epoch_loop.val_loop
        if loop._combined_loader is None:
            trainer.validating = True
            loop.setup_data()
            trainer.training = True
        assert loop._combined_loader is not None
        samplers = [_sampler_of(loader) for loader in loop._combined_loader.flattened]
        self.are_shares = trainer.world_size > 1 and all(isinstance(one, DistributedSampler) for one in samplers)
        for sampler in samplers:
            if isinstance(sampler, _SHUFFLING) or getattr(sampler, "shuffle", False):
                raise ConfigError(
                    "The validation data are shuffled, so that losses before and after could not be compared sample "
                    "by sample. Build their DataLoader with shuffle=False."
                )
        self._of_step, self._indices = SampleLosses(self._validation_loss), (0, 0)

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate the module as it is; what it logs meanwhile is forgotten."""
        trainer = self._trainer
        module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop.val_loop
        assert loop._combined_loader is not None
        loaders = CombinedLoader(loop._combined_loader.iterables, loop._combined_loader._mode)
        loaders.limits = list(loop._max_batches)
        modes = [(one, one.training) for one in module.modules()]
        generators = [(one, one.get_state()) for one in _generators(loaders.flattened)]
        found: list[list[Tensor]] = [[] for _ in loaders.flattened]
        with ExitStack() as undo:
            for one, is_training in modes:
                undo.callback(setattr, one, "training", is_training)
            for generator, state in generators:
                undo.callback(generator.set_state, state)
            results = undo.enter_context(aside(trainer, RunningStage.VALIDATING))
            module.eval()
            for batch, batch_idx, dataloader_idx in iter(loaders):
                placed = self._placed(batch, dataloader_idx)
                results.batch, results.batch_size = placed, None
                results.dataloader_idx = dataloader_idx if len(loaders.flattened) > 1 else None
                self._indices = batch_idx, dataloader_idx
                found[dataloader_idx].append(self._losses_of(module, placed))
        shares = zip(found, loaders.flattened, strict=True)
        return Evaluation(losses=torch.cat([self._own(torch.cat(losses), one) for losses, one in shares if losses]))

    def _own(self, losses: Tensor, loader: Any) -> Tensor:
        """Without those of samples that a sampler repeats, so that all ranks have as many."""
        if not self.are_shares:
            return losses
        sampler = _sampler_of(loader)
        return losses[: len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))]

    def _placed(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch as ``validation_step`` gets it."""
        trainer = self._trainer
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
        return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=dataloader_idx)

    def _losses_of(self, module: LightningModule, batch: Any) -> Tensor:
        if self._losses is None:
            return self._of_step(batch)
        with self._trainer.precision_plugin.val_step_context():
            losses = self._losses(module, batch)
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            what = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"{losses!r:.80}"
            raise ConfigError(
                f"losses gave {what}. It must give one loss per sample of the batch, of shape (samples,)."
            )
        return losses.detach().float()

    def _validation_loss(self, batch: Any) -> Tensor:
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop.val_loop
        batch_idx, dataloader_idx = self._indices
        several = loop._is_sequential and loop.num_dataloaders > 1
        kwargs = loop._build_kwargs(batch, batch_idx, dataloader_idx if several else None)
        arguments = loop._build_step_args_from_hook_kwargs(kwargs, "validation_step")
        output = call._call_strategy_hook(trainer, "validation_step", *arguments)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise ConfigError(
                "validation_step returns no loss, by which growth could be judged. Return the mean loss of the batch "
                "from it, or give GrowthCallback(losses=...), one loss per sample."
            )
        return loss


class DataOrder:
    """Where the training data stand, so that a run which goes on gets the batches that it would have got.

    A shuffling loader draws its order from the random streams when an epoch begins. They are noted then; a run that
    goes on within that epoch draws the same order again, and skips what it has had.

    Args:
        trainer: the Trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._begun: dict[str, Any] = {}
        self._drawn: dict[str, Any] = {}
        self._has_order = False

    def begin_run(self, state: dict[str, Any] | None) -> None:
        """Call it before the Trainer loads its training data: the order of the first epoch is drawn then.

        Args:
            state: of the run that is to go on; None begins one.
        """
        is_drawn = bool(self._loaders)  # configure_optimizers has asked how many batches there will be
        if state is not None and state["begun"]["is_first"] and state["begun"]["random"] and not is_drawn:
            restore_random_state(streams_from_text(state["begun"]["random"]))
        self._begun = {"is_first": True, "random": None if is_drawn else streams_to_text(random_state())}
        self._has_order = True

    def note_drawn(self) -> None:
        """Call it once the training data are loaded, before anything is drawn after that."""
        self._drawn = random_state()

    def begin_epoch(self) -> None:
        """An epoch begins; its order is drawn next, but for the first one's of a run."""
        if not self._has_order:
            self._begun = self._here() | {"is_first": False}
        self._has_order = False

    def end_epoch(self) -> None:
        """Let a :class:`esper.BatchLoader`, which the Trainer leaves at its last batch, begin the next epoch."""
        self._has_order = False
        for loader in self._loaders:
            if isinstance(loader, BatchLoader) and loader.state_dict()["position"] == len(loader):
                next(iter(loader), None)

    def state_dict(self) -> dict[str, Any]:
        """Where the data stand, and where they stood when the epoch began."""
        return {"begun": self._begun, "here": self._here()}

    def go_on(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the Trainer has loaded its own counters already, and the streams are put
        where they were."""
        fit, fetcher, here = self._trainer.fit_loop, self._trainer.fit_loop._data_fetcher, state["here"]
        epochs, self._begun = fit.epoch_loop, state["begun"]
        assert fetcher is not None
        if self.is_at_next_epoch:
            self._go_to(here)
            self.end_epoch()
            iter(fetcher)
            self._begun, self._has_order = here | {"is_first": False}, True
            return
        is_over = epochs._num_ready_batches_reached()
        if not is_over and not all(hasattr(loader, "load_state_dict") for loader in self._loaders):
            if self._begun["is_first"]:
                restore_random_state(self._drawn)
            else:
                self._go_to(self._begun)
                for loader in self._loaders:  # the Trainer does so after this, and samplers of ranks shuffle by it
                    _set_sampler_epoch(loader, self._trainer.current_epoch)
                iter(fetcher)
            # the loop counts a batch whose step was over, though not its hooks; one whose step was cut is had again
            done = epochs.batch_progress.current.completed + epochs.restarted_on_train_batch_end
            for _ in range(done):
                next(fetcher)
            fetcher.fetched -= done  # the loop adds them
        _restore_generators(self._loaders, here["generators"])
        restore_random_state(streams_from_text(here["random"]))

    @property
    def is_at_next_epoch(self) -> bool:
        """Whether a Trainer that goes on begins an epoch. Where it was saved after the last batch of one, and before
        its end, it leaves that end out."""
        fit = self._trainer.fit_loop
        is_over = fit.epoch_loop._num_ready_batches_reached()
        return not fit.restarting or (is_over and fit.epoch_loop.restarted_on_train_batch_end)

    @property
    def _loaders(self) -> list[Any]:
        loader = self._trainer.fit_loop._combined_loader
        return [] if loader is None else loader.flattened

    def _here(self) -> dict[str, Any]:
        return {
            "random": streams_to_text(random_state()),
            "loaders": [one.state_dict() if hasattr(one, "state_dict") else None for one in self._loaders],
            "generators": [one.get_state() for one in _generators(self._loaders)],
        }

    def _go_to(self, place: dict[str, Any]) -> None:
        for loader, state in zip(self._loaders, place["loaders"], strict=True):
            if state is not None:
                loader.load_state_dict(state)
        _restore_generators(self._loaders, place["generators"])
        restore_random_state(streams_from_text(place["random"]))


def _sampler_of(loader: Any) -> Any:
    return getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))


def _restore_generators(loaders: list[Any], states: list[Tensor]) -> None:
    for generator, state in zip(_generators(loaders), states, strict=True):
        generator.set_state(state.cpu())


def _generators(loaders: list[Any]) -> list[torch.Generator]:
    """Random generators of loaders and their samplers, each once."""
    owners = [owner for one in loaders for owner in (one, getattr(one, "sampler", None))]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
