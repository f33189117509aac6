"""The Trainer of Hugging Face, for models that grow."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import esper
from esper.contracts.errors import CheckpointError, ConfigError
from esper.integrations.sample_losses import SampleLosses
from esper.integrations.trainer_arguments import check_arguments, check_model
from esper.integrations.trainer_updates import Update
from esper.integrations.transformers import fits_folder, save_pretrained
from esper.kasmina.host.anchoring import places

try:
    from accelerate.data_loader import DataLoaderStateMixin
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.optimization import GreedyLR
    from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ConfigError(f"GrowthTrainer needs {error.name}: pip install 'esper-morphogenetic[transformers]'.") from error

GROWTH = "growth"
"""Folder of a checkpoint that holds the session."""

EXPORT = "exported.pt"
"""File of a model that ``from_pretrained`` could not build."""


class GrowthTrainer(Trainer):
    """Trains a wrapped model with the Trainer's own loop, and lets it grow.

    It is a ``transformers.Trainer`` with a :class:`esper.Session`. Between two updates the session tries what could
    grow, on the same updates, made by the same code; the logs, the state and the callbacks of the Trainer see nothing
    of that. An epoch is an epoch of the Trainer, a step is an update, and ``planned_steps`` is ``max_steps``.

    Args:
        model: from :func:`esper.wrap`.
        args: training arguments; each process has one device.
        losses: ``losses(model, inputs) -> Tensor`` of shape (samples,): one loss for each sample of a batch of the
            held-out data. None takes the loss that the model is trained on, sample by sample.
        growth_directory: where logs of what grows go, ``directory`` of :class:`esper.Session`; None writes none.
        growth_options: further arguments of :class:`esper.Session` (``policy``, ``flags``, ``extra``, ``on_event``).
        callbacks: callbacks, which are called after the session.
        options: all else that the Trainer takes; ``eval_dataset`` is the held-out data.

    Attributes:
        growth: the session; None before :meth:`train`.

    Raises:
        ConfigError: if the model was not wrapped, there is no held-out data, or something does not work with growth.
    """

    growth: Any = None
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        losses: Callable[[nn.Module, Any], Tensor] | None = None,
        growth_directory: str | Path | None = None,
        growth_options: Mapping[str, Any] | None = None,
        callbacks: list[Any] | None = None,
        **options: Any,
    ) -> None:
        args = TrainingArguments() if args is None else args
        check_arguments(args, options.get("eval_dataset"))
        self._losses, self._directory, self._growth_options = losses, growth_directory, growth_options or {}
        super().__init__(model, args, callbacks=[_Growing(self), *(callbacks or [])], **options)
        check_model(self.model, self.optimizer)
        self._update = Update([], None)
        self._is_in_epoch = False

    # What the Trainer does, noted

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **options: Any) -> Any:
        """Train as the Trainer does; with ``True`` from the last checkpoint that was written to its end.

        Raises:
            CheckpointError: if there is none that holds what has grown.
            RankError: if another rank does not answer any more.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_whole()
        try:
            return super().train(resume_from_checkpoint, *others, **options)
        except RuntimeError:
            if self.growth is None:
                raise
            with self.growth.ranks.training():
                raise

    def get_batch_samples(self, *arguments: Any) -> tuple[list[Any], Any]:
        samples, num_items = super().get_batch_samples(*arguments)
        self._update = Update.of(samples, num_items)
        return samples, num_items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self._update.begin()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._update.add(loss)
        return loss

    def _updated(self) -> None:
        """An update is over; the session may try what could grow."""
        update, self._update = self._update, Update([], None)
        assert update.loss is not None
        self.growth.after_step(update.batch, update.loss)
        # exact: the Trainer adds a share that is 1.0 after the last batch of an epoch
        self._is_in_epoch = not float(self.state.epoch).is_integer()
        if not self._is_in_epoch:  # before checkpoints of this step, which another run goes on from in the next epoch
            self.growth.after_epoch()

    def _epoch_ended(self) -> None:
        """A stream has ended, whose length nobody knew."""
        if self._is_in_epoch and not self.control.should_training_stop:
            self._is_in_epoch = False
            self.growth.after_epoch()

    # An update, made once more

    def _make_update(self, batch: dict[str, Any]) -> Tensor:
        """What the Trainer's inner loop does in an update, but for what it tells others."""
        here = self._update, self.current_gradient_accumulation_steps
        model, self._update = self.model_wrapped, Update.again(batch)
        try:
            self.current_gradient_accumulation_steps = len(self._update.inputs)
            gathered = self.accelerator.gradient_state
            for position, inputs in enumerate(self._update.inputs, start=1):
                is_last = position == len(self._update.inputs)
                is_averaged = is_last or gathered.plugin_kwargs.get("sync_each_batch", False)
                gathered._set_sync_gradients(is_last)
                with nullcontext() if is_averaged else self.accelerator.no_sync(model):
                    self.training_step(model, inputs, self._update.num_items)
            norm = self._clip_grad_norm(model) if self.args.max_grad_norm > 0 else None
            self._get_grad_norm(model, grad_norm=norm)
            self.optimizer.step()
            is_by_metric = isinstance(self.lr_scheduler, ReduceLROnPlateau | GreedyLR)
            if not (self.accelerator.optimizer_step_was_skipped or is_by_metric):
                self.lr_scheduler.step()
            model.zero_grad()
            assert self._update.loss is not None
            return self._update.loss
        finally:
            self._update, self.current_gradient_accumulation_steps = here

    # The session

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        names = self.eval_dataset if isinstance(self.eval_dataset, dict) else [None]
        self._held_out = [self.get_eval_dataloader(name) for name in names]
        self._sample_losses = (
            SampleLosses(self._mean_loss) if self._losses is None else partial(self._losses, self.model)
        )
        self.growth = esper.Session(
            self.model_wrapped,
            self.optimizer.optimizer,  # that of Accelerate around it remembers nothing
            train_step=self._make_update,
            evaluate=self._judged,
            planned_steps=max_steps,
            scheduler=self.lr_scheduler,
            scaler=self.accelerator.scaler,
            directory=self._directory,
            held_out="shards" if self._holds_a_share else "same",
            **self._growth_options,
        )
        if resume_from_checkpoint is not None:
            self.growth.load(Path(resume_from_checkpoint) / GROWTH)
        return prepared

    def _judged(self, _: nn.Module) -> esper.Evaluation:
        found = []
        for loader in self._held_out:
            for inputs in loader:
                losses = self._sample_losses(self._prepare_inputs(inputs)).float()
                found.append(self._own(losses, loader) if self._holds_a_share else losses)
        return esper.Evaluation(losses=torch.cat(found))

    @property
    def _holds_a_share(self) -> bool:
        """Whether this rank evaluates samples of its own: loaders that Accelerate has prepared deal them out."""
        return self.args.world_size > 1 and all(isinstance(one, DataLoaderStateMixin) for one in self._held_out)

    def _own(self, losses: Tensor, loader: Any) -> Tensor:
        """Without those of samples that fill up the last batches, so that all ranks have as many."""
        if not loader.end_of_dataloader or loader.remainder <= 0:
            return losses
        return losses[: max(0, loader.remainder - self.args.process_index * len(losses))]

    def _mean_loss(self, inputs: Any) -> Tensor:
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model, {**inputs})
        assert isinstance(loss, Tensor)
        return loss

    # Files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the Trainer does; one that has grown as Esper's ``save_pretrained`` does.

        Where layers have become wider, or no library brings the class, it is ``exported.pt``, for ``torch.load``.

        Raises:
            ConfigError: if a graft is still on trial.
        """
        if _internal_call and any(place.arena.live for place in places(self.model)):
            if self.args.should_save:
                self._save_beside(self._folder(output_dir))  # the weights are in the session's folder
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save or all(place.is_dormant for place in places(self.model)):
            super()._save(output_dir, state_dict)
            return
        folder = self._folder(output_dir)
        plain = esper.export(self.model)
        if fits_folder(plain):
            save_pretrained(plain, folder)
        else:
            torch.save(plain, folder / EXPORT)
        self._save_beside(folder)

    def _save_beside(self, folder: Path) -> None:
        """What the Trainer saves beside model and configuration."""
        collator = getattr(self.data_collator, "tokenizer", None)
        processing = collator if self.processing_class is None else self.processing_class
        if processing is not None:
            processing.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _folder(self, output_dir: str | None) -> Path:
        assert self.args.output_dir is not None
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)  # of a run that was killed meanwhile
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.growth.save(Path(output_dir) / GROWTH)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that each rank writes: all have, before the file is written by which a checkpoint is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _last_whole(self) -> str | bool:
        """The last checkpoint that was written to its end; True if there is none, of which the Trainer tells."""
        assert self.args.output_dir is not None
        folders = [one for one in Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(one)]
        return str(max(folders, key=lambda one: int(one.name.split("-")[-1]))) if folders else True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: weights fit only once the architecture is regrown, which the session does."""
        folder = Path(resume_from_checkpoint)
        if not (folder / GROWTH).is_dir():
            raise CheckpointError(
                f"{folder} does not hold what has grown, so no run can go on from it: it was saved with "
                "save_only_model=True, or by another Trainer."
            )
        if not _is_whole(folder):
            raise CheckpointError(
                f"{folder} was not written to its end. Go on from the one before it: "
                "train(resume_from_checkpoint=PATH)."
            )

    def _load_best_model(self) -> None:
        self.growth.load(f"{self.state.best_model_checkpoint}/{GROWTH}")


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end, which is the Trainer's state."""
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return (folder / GROWTH).is_dir()


class _Growing(TrainerCallback):
    """Tells a trainer where its session comes in.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: GrowthTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer._updated()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._trainer._epoch_ended()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Also where the best checkpoint was loaded: what has grown there is judged for the last time."""
        self._trainer.growth.finish()
