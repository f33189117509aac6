"""Growth in Lightning: a callback, and the Trainer does the rest.

The Trainer trains as it does without Esper. After each batch the callback tells a :class:`esper.Session` what was done;
where the session takes steps once more, the Trainer's own optimization takes them, and nobody else hears of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.integrations.lightning_data import DataOrder, HeldOut, SampleLossesOf
from esper.integrations.lightning_ranks import RankFiles, check_strategy, leave_to_esper, of_this_rank
from esper.integrations.lightning_steps import TrainerSteps
from esper.kasmina.host.layer import KasminaLayer
from esper.kasmina.host.wrapping import growth_config
from esper.runtime.arguments import inner_of
from esper.runtime.session import Session

OWN = frozenset(
    {"model", "optimizer", "loss", "train_step", "evaluate", "scheduler", "scheduler_every", "scaler"}
    | {"clip_grad_norm", "accumulate", "loader"}
)
"""Arguments of a session that the callback gives it."""


class GrowthCallback(Callback):
    """Lets a module, or the network in it, grow while a Trainer fits it.

    Wrap it by :func:`esper.wrap` before the optimizer is built. Growth is judged at the end of every epoch, or every
    ``boundary_steps``, by the validation data. Its state goes with the Trainer's checkpoints.

    Args:
        losses: ``losses(module, batch)`` gives one loss per sample of a validation batch, of shape (samples,); it is
            called in eval mode, without gradients. None takes the mean loss that ``validation_step`` returns, for each
            sample.
        planned_steps: batches of the whole run; None takes what the Trainer estimates.
        options: further arguments of :class:`esper.Session`: ``directory``, ``policy``, ``extra``, ``on_event``, ...

    Attributes:
        session: that of the run; None before training begins.

    The methods that a Trainer calls raise:

    Raises:
        ConfigError: if something does not fit together: no module or several are wrapped, several optimizers,
            no validation data, no known length; each says what to do. Or what :class:`esper.Session` says.
        CheckpointError: if a checkpoint that is to be gone on with is of another run.
        RankError: if another rank does not answer any more.
    """

    def __init__(
        self, *, losses: SampleLossesOf | None = None, planned_steps: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        if given := sorted(OWN & options.keys()):
            raise ConfigError(
                f"GrowthCallback takes {given[0]!r} from the Trainer and the module. Leave it out; what may be given "
                "is losses, planned_steps and other arguments of esper.Session."
            )
        self._losses, self._planned_steps, self._options = losses, planned_steps, options
        self.session: Session | None = None
        self._saved: dict[str, Any] | None = None
        self._unpacked: TemporaryDirectory[str] | None = None
        self._replaced: tuple[str, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be trained."""
        if stage != "fit":
            return
        check_strategy(trainer)
        leave_to_esper(pl_module)
        self.session = self._saved = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The module has been given what had grown, which is no matter of the strategy's."""
        leave_to_esper(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note from where the first epoch's order is drawn."""
        _, model = _wrapped_in(pl_module)
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(one, WeightAveraging | StochasticWeightAveraging) and growth_config(model).max_rounds:
                raise ConfigError(
                    f"{type(one).__name__} keeps a copy of the module, which cannot follow it when it grows. Leave it "
                    "out, or average the weights once growth is over: those of esper.export."
                )
        if self._saved is not None:
            self._saved = of_this_rank(trainer, self._saved)
        self._order = DataOrder(trainer)
        self._order.begin_run(None if self._saved is None else self._saved["data"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the session, and go on where a checkpoint stands."""
        if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
            raise ConfigError(
                "training_step takes a dataloader_iter, so that no batch could be remembered. Let it take (batch, "
                "batch_idx)."
            )
        self._order.note_drawn()
        has_begun = trainer.fit_loop.epoch_loop.total_batch_idx >= 0
        if has_begun and self._saved is None:
            raise ConfigError(
                "The run goes on from where no growth was saved: a checkpoint without GrowthCallback's state, or an "
                "earlier fit. Begin a new one, Trainer and callback: after module.load_state_dict(torch.load(path)"
                "['state_dict']) it has the weights."
            )
        self._steps = TrainerSteps(trainer, (self._options.get("extra") or {}).values())
        self.session = self._built(trainer, pl_module)
        if self._saved is not None:
            self._load(self.session, self._saved["session"])
            if self._order.is_at_next_epoch and self.session.epoch < trainer.current_epoch:
                self.session.after_epoch()  # the Trainer leaves it out
            self._order.go_on(self._saved["data"])
            self._saved = None
        self._take_part(trainer, self.session)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note from where the epoch's order is drawn."""
        self._order.begin_epoch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the session of a step."""
        assert self.session is not None
        self.session.after_step(self._steps.remembered(batch), self._steps.loss(outputs))
        self._steps.rest()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, and decide."""
        assert self.session is not None
        self._order.end_epoch()
        if self.session.epoch <= trainer.current_epoch:  # else it was told before the run was cut
            self.session.after_epoch()
        self._steps.rest()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give every lifecycle its outcome."""
        assert self.session is not None
        self.session.finish()
        self._let_go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the Trainer as it was."""
        self._let_go(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the session, and where the data stand; tensors and plain values, for a checkpoint."""
        if self.session is None:
            return self._saved or {}
        with TemporaryDirectory() as folder:
            self.session.save(folder)
            files = {path.relative_to(folder).as_posix(): _bytes_of(path) for path in _files(Path(folder))}
        return {"session": files, "data": self._order.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the session is loaded once the Trainer has loaded all else."""
        self._saved = state_dict

    def _take_part(self, trainer: Trainer, session: Session) -> None:
        """Put something around methods of the strategy, as long as the run lasts."""
        strategy = trainer.strategy
        begins = strategy.on_train_batch_start

        def on_train_batch_start(batch: Any, batch_idx: int) -> None:
            begins(batch, batch_idx)
            self._steps.about_to_step()

        # the one hook that comes after the module's own on_train_batch_start, and just before its training_step
        methods: dict[str, Any] = {"on_train_batch_start": on_train_batch_start}
        if session.ranks.are_several:
            files = RankFiles(strategy, self.state_key)
            meeting = [strategy.training_step, strategy.backward, files.save_checkpoint, files.remove_checkpoint]
            methods |= {one.__name__: session.ranks.training()(one) for one in meeting}
        for name, method in methods.items():
            setattr(strategy, name, method)
        self._replaced = tuple(methods)

    def _built(self, trainer: Trainer, module: LightningModule) -> Session:
        name, model = _wrapped_in(module)
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"configure_optimizers gives {len(trainer.optimizers)} optimizers; GrowthCallback needs exactly one. "
                "Use esper.Session in a loop of your own for several."
            )
        assert trainer.strategy.model is not None
        inner_of(trainer.strategy.model)  # which refuses one that does not leave to Esper what grows
        held_out = HeldOut(trainer, self._losses)
        extra = {} if name == "" else {"lightning_module": _Rest(module, name)}
        return Session(
            model,
            trainer.optimizers[0],
            train_step=self._steps.again,
            evaluate=held_out,
            planned_steps=self._planned(trainer),
            scheduler=_Schedulers(trainer) if trainer.lr_scheduler_configs else None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            **{"held_out": "shards" if held_out.are_shares else "same"}
            | self._options
            | {"extra": extra | (self._options.get("extra") or {})},
        )

    def _planned(self, trainer: Trainer) -> int:
        if self._planned_steps is not None:
            return self._planned_steps
        try:
            steps = trainer.estimated_stepping_batches
        except MisconfigurationException:  # accumulation changes from epoch to epoch
            steps = float("inf")
        batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
        if steps in (-1, float("inf")):
            raise ConfigError(
                "How many batches the run will have is not known. Give the Trainer max_epochs and data with a length, "
                "or max_steps; or GrowthCallback(planned_steps=...), in batches."
            )
        if batches == float("inf"):
            return int(steps) * accumulate
        epochs, rest = divmod(int(steps), -(-int(batches) // accumulate))
        return epochs * int(batches) + rest * accumulate

    def _load(self, session: Session, files: Mapping[str, Tensor]) -> None:
        self._unpacked = TemporaryDirectory()  # for as long as the run: what replaces states in it is written there
        for name, content in files.items():
            path = Path(self._unpacked.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.cpu().numpy().tobytes())
        session.load(self._unpacked.name)
        if session.is_finished:
            raise ConfigError(
                "The checkpoint was saved when the run was finished, with all that has grown. Go on from an earlier "
                "one, or begin a new run with its weights."
            )

    def _let_go(self, trainer: Trainer) -> None:
        for name in self._replaced:
            vars(trainer.strategy).pop(name, None)
        self._replaced = ()
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None


class _Rest:
    """What a module holds besides the network in it that grows: parameters and buffers, as one state.

    Args:
        module: the module.
        name: of the network in it.
    """

    def __init__(self, module: LightningModule, name: str) -> None:
        self._module, self._prefix = module, f"{name}."

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.data for name, tensor in self._tensors()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors():
                tensor.copy_(state[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for found in (self._module.named_parameters(), self._module.named_buffers()):
            yield from ((name, one) for name, one in found if not name.startswith(self._prefix))


class _Schedulers:
    """All schedulers of a Trainer, which steps them itself."""

    def __init__(self, trainer: Trainer) -> None:
        self._each = [config.scheduler for config in trainer.lr_scheduler_configs]

    def state_dict(self) -> dict[str, Any]:
        return {str(index): scheduler.state_dict() for index, scheduler in enumerate(self._each)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, scheduler in enumerate(self._each):
            scheduler.load_state_dict(state[str(index)])


def _wrapped_in(module: LightningModule) -> tuple[str, nn.Module]:
    """Name and network that was given to :func:`esper.wrap`; the name is empty where that is the whole module."""
    found = [
        (name, one)
        for name, one in module.named_modules()
        if isinstance(one, KasminaLayer) and one._esper.config is not None
    ]
    if len(found) != 1:
        what = ", ".join(repr(name) for name, _ in found) or "nothing"
        raise ConfigError(
            f"GrowthCallback needs one wrapped network in the module, and found {what}. Call esper.wrap(module), or of "
            "one network in its __init__, before the Trainer fits it."
        )
    return found[0]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _bytes_of(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
