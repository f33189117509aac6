"""One training step, the same for the run and for its arms."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import covered_parameters
from esper.kasmina.places.averaging import GradientAverage
from esper.kasmina.places.before_update import before_update
from esper.kasmina.places.signals import SignalReader
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from esper.runtime.training.optimizer_settings import Rates, Settings, SettingsNotes
from esper.runtime.training.optimizers import HostOptimizer
from esper.runtime.training.ranks import Ranks
from esper.runtime.training.rewarming import Rewarming
from esper.runtime.training.scaled_rates import ScaledRates
from esper.runtime.training.sharding import clip_grad_norm_, hooked
from esper.shards import own

GRAFT_LR = 1.5
"""Learning rate of grafts relative to the host's, behind optimizers of the Adam family."""

GRAFT_PEAK_LR = 1e-3
"""Peak learning rate of grafts behind optimizers that are not of the Adam family."""

DECAY_SHARE = 0.3
"""Grafts join a decay to zero over this last share of the planned steps."""

DECAYED = 0.1
"""A learning rate below this share of its peak has decayed."""

_IN_CHARGE: weakref.WeakKeyDictionary[object, weakref.ref["Trainer"]] = weakref.WeakKeyDictionary()
"""Who trains a model, and with an optimizer, now."""


class Trainer:
    """Runs forward, backward, clipping and the optimizer; grafts are stepped when the optimizer is.

    Args:
        model: the wrapped model.
        optimizer: the user's; hooked where it really steps.
        config: the model's.
        planned_steps: batches of the run.
        loss: ``loss(model, batch) -> scalar tensor``; or None with ``train_step``.
        train_step: ``train_step(batch) -> scalar loss``, a whole step by the user's own code; or None with ``loss``.
        scheduler: stepped after the optimizer where ``scheduler_every`` is ``"step"``.
        scheduler_every: ``"step"`` or ``"epoch"``.
        scaler: gradient scaler.
        clip_grad_norm: norm to which the gradients of the model are clipped, grafts included; not those of ``extra``.
        accumulate: batches per optimizer step.
        called: what ``loss`` is given: the model, or what several ranks call it through.
        ranks: who trains it together.
        mesh: over which parameters are sharded; None where they are not.

    Attributes:
        remembers: whether anybody will ask for the settings of the next step.
        has_updated: whether the optimizer stepped in the training step before.
        is_replaced: whether another one has taken over the model or the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: HostOptimizer,
        config: GrowthConfig,
        planned_steps: int,
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None,
        train_step: Callable[[Any], Tensor | float] | None,
        scheduler: Any,
        scheduler_every: Literal["step", "epoch"],
        scaler: Any,
        clip_grad_norm: float | None,
        accumulate: int,
        called: nn.Module | None = None,
        ranks: Ranks,
        mesh: Any = None,
    ) -> None:
        if (loss is None) == (train_step is None):
            raise ConfigError("Give Session either loss=(model, batch) -> loss, or train_step=(batch) -> loss.")
        if scheduler_every not in ("step", "epoch"):
            raise ConfigError(f"scheduler_every must be 'step' or 'epoch', not {scheduler_every!r}.")
        if type(accumulate) is not int or accumulate < 1:
            raise ConfigError(f"accumulate must be a whole number of at least 1, not {accumulate!r}.")
        is_number = isinstance(clip_grad_norm, int | float) and not isinstance(clip_grad_norm, bool)
        if clip_grad_norm is not None and not (is_number and clip_grad_norm > 0):
            raise ConfigError(f"clip_grad_norm must be above 0 or None, not {clip_grad_norm!r}.")
        given = {"scheduler": scheduler, "scaler": scaler, "clip_grad_norm": clip_grad_norm}
        if train_step is not None and (clip_grad_norm is not None or accumulate != 1):
            raise ConfigError(
                "With train_step your own code clips and accumulates; leave clip_grad_norm and accumulate."
            )
        if clip_grad_norm is not None and (sparse := _with_sparse_gradients(model)):
            raise ConfigError(
                f"{sparse[0]!r} has sparse gradients, whose norm torch cannot clip. Leave clip_grad_norm, or build it "
                "with sparse=False."
            )
        steps_it = train_step is None or scheduler_every == "epoch"  # else the caller's own code does
        looks_at_loss = scheduler_every == "epoch" and getattr(scheduler, "mode", "min") == "min"
        if isinstance(scheduler, ReduceLROnPlateau) and steps_it and not looks_at_loss:
            raise ConfigError(
                "ReduceLROnPlateau is shown the held-out loss after every epoch: give it mode='min' and Session "
                "scheduler_every='epoch'."
            )
        for name in ("scheduler", "scaler"):
            if given[name] is not None and not hasattr(given[name], "state_dict"):
                raise ConfigError(
                    f"{name} is a {type(given[name]).__name__} without a state_dict, so it cannot be resumed."
                )
        self._model, self._optimizer, self._config, self._planned_steps = model, optimizer, config, planned_steps
        self._called, self.ranks = model if called is None else called, ranks
        self._loss, self._train_step, self.scaler = loss, train_step, scaler
        self.scheduler, self._scheduler_every = scheduler, scheduler_every
        self._clip_grad_norm, self.accumulate = clip_grad_norm, accumulate
        self._handles = [before_update(part, self._note_settings) for part in optimizer.parts]
        self._average = GradientAverage(places(model), ranks.mean_) if ranks.are_several else None
        self._handles += self._average.handles if self._average else []
        if mesh is not None:
            self._handles += hooked(model)
        by_family, weight_decay = config.graft_lr is None, config.graft_weight_decay
        self._slot_optimizers = [
            SlotOptimizer(share, part, self._graft_lr_in_step, weight_decay, by_family=by_family)
            for part, share in optimizer.shares()
        ]
        self._rewarming = None if config.rewarm is None else Rewarming(model, config.rewarm)
        self.lr_factor = 1.0
        if self._rewarming is not None or config.emergency_response == "lower_lr":
            for part in optimizer.parts:  # after the others, which are to see the scheduler's rates
                scaled = ScaledRates()
                self._handles.append(before_update(part, partial(self._scale_rates, scaled)))
                self._handles.append(part.register_step_post_hook(scaled.restore))
        self._scales = _scales(model) if hasattr(scaler, "scale") else []
        self.tell_scale()
        self.signals = SignalReader(places(model), covered_parameters(model), optimizer.stepping)
        arenas = {id(place.arena.slots) for place in places(model)}
        groups = (index for index, group in enumerate(optimizer.groups) if arenas & {*map(id, group["params"])})
        self._graft_group, self._num_groups = next(groups, 0), len(optimizer.groups)
        self.owns_loop = loss is not None
        self.step = self.epoch = 0
        self.peak_lr = config.peak_lr or 0.0
        self._rates, self._notes = Rates(), SettingsNotes()
        self.remembers: Callable[[], bool] = lambda: True
        self._noted: Settings | None = None
        self._untrained: list[str] | None = self._norms()
        self.has_updated = self.is_replaced = False

    def detach(self) -> None:
        """Take the hooks off the optimizer: it is the user's alone again."""
        for handle in self._handles:
            handle.remove()
        for slot_optimizer in self._slot_optimizers:
            slot_optimizer.detach()
        self.signals.detach()
        for place in places(self._model):
            if any(place.state.loss_scale is scale for scale in self._scales):  # a newer trainer has its own
                place.state.loss_scale = None

    def take_charge(self) -> None:
        """Be the only one who trains this model and steps with this optimizer: the one before steps no more."""
        for owned in (self._model, *self._optimizer.parts):
            reference = _IN_CHARGE.get(owned)
            earlier = None if reference is None else reference()
            if earlier is not None and earlier is not self:
                earlier.detach()
                earlier.is_replaced = True
            _IN_CHARGE[owned] = weakref.ref(self)

    @property
    def num_groups(self) -> int:
        """Parameter groups that the optimizer has now."""
        return len(self._optimizer.groups)

    def refuse_unseen_steps(self) -> None:
        """Refuse to go on, or to grow, if parameters have moved and the optimizer was never seen to step.

        Raises:
            ConfigError: with what to do.
        """
        if self._untrained is None:
            return
        if self.rates is not None:
            self._untrained = None
        elif self._untrained != self._norms():
            raise ConfigError(
                f"The parameters have moved, but the step of {type(self._optimizer.stepping).__name__} was never "
                "called, by which Esper trains grafts and keeps frozen ones still. Give Session the optimizer whose "
                "step() your code calls."
            )

    def train(self, batch: Any, replayed: tuple[Settings | None] | None = None) -> Tensor | float:
        """One step on a batch.

        Args:
            batch: what the user's ``loss`` or ``train_step`` takes.
            replayed: in an arm: the settings that the run's optimizer had in this step (None where it rested); the
                scheduler is left alone then.

        Returns:
            The loss, averaged over ranks, a detached scalar that was not read from the device.
        """
        if replayed is not None and replayed[0] is not None:
            for group, settings in zip(self._optimizer.groups, replayed[0], strict=True):
                for name, value in settings.items():
                    if isinstance(group[name], Tensor):
                        group[name].copy_(value)
                    else:
                        group[name] = value
        self._noted, self.has_updated = None, False
        self.tell_scale()
        with self.ranks.training():
            loss = self._step(batch, with_scheduler=replayed is None)
        if replayed is not None:
            self._noted = None
        return loss()

    def tell_scale(self) -> None:
        """Tell the guard of grafts by how much a gradient scaler multiplies the next loss; waits for nothing."""
        for scale in self._scales:
            scale.copy_(self.scaler.scale(torch.ones_like(scale)))

    def differentiate(self, batch: Any) -> Tensor | float:
        """Forward and backward on a batch, to be undone: the optimizer rests. With ``train_step`` a whole step of it.

        Returns:
            The loss, detached.
        """
        with self.ranks.training():
            loss = self._backward(batch) if self._train_step is None else self._taken(batch)
        return loss()

    @torch.no_grad()
    def look_at(self, batch: Any) -> None:
        """A forward pass through the caller's loss; nothing learns from it."""
        assert self._loss is not None
        self._loss(self._called, batch)

    def take_settings(self) -> Settings | None:
        """Settings with which the optimizer stepped since the last call; None if it rested or nobody remembers them."""
        noted, self._noted = self._noted, None
        return noted

    def end_epoch(self, measure_loss: Callable[[], float]) -> None:
        """Step a scheduler that counts epochs; one that looks for plateaus is shown the held-out loss."""
        if self.scheduler is None or self._scheduler_every != "epoch":
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(measure_loss())
        else:
            self.scheduler.step()

    def clock(self) -> dict[str, Any]:
        """Where training stands: step, epoch, and the learning rates seen."""
        return {"step": self.step, "peak_lr": self.peak_lr, "epoch": self.epoch, "rates": self.rates}

    def go_to(self, clock: dict[str, Any]) -> None:
        """Inverse of :meth:`clock`."""
        self.step, self.peak_lr, self.epoch = clock["step"], clock["peak_lr"], clock["epoch"]
        self.rates = clock["rates"]

    @property
    def lr(self) -> float:
        """Learning rate of the group that holds the grafts."""
        rates = self.rates or [float(group["lr"]) for group in self._optimizer.groups]
        return rates[self._graft_group]

    @property
    def rates(self) -> list[float] | None:
        """Learning rates of all groups in the last step of the optimizer; None before the first."""
        return self._rates.of_last_step

    @rates.setter
    def rates(self, rates: list[float] | None) -> None:
        self._rates.of_last_step = rates
        if rates is None:
            self._untrained = self._norms()

    @property
    def has_decayed(self) -> bool:
        """Whether the host trains below 10 % of the peak rate, re-warmed or not, or 95 % of the steps are done."""
        lr = self.lr
        return lr * self._lift(lr) < DECAYED * self.peak_lr or self.step >= 0.95 * self._planned_steps

    @property
    def gradient_scale(self) -> float:
        """What the gradients of the last step were multiplied by."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def _step(self, batch: Any, *, with_scheduler: bool) -> Callable[[], Tensor | float]:
        """A step; call what is returned to have its loss, averaged over ranks."""
        if self._train_step is not None:
            return self._taken(batch)
        loss = self._backward(batch)
        if (self.step + 1) % self.accumulate == 0:
            self._update(with_scheduler=with_scheduler)
        return loss

    def _taken(self, batch: Any) -> Callable[[], Tensor | float]:
        assert self._train_step is not None
        loss = self._train_step(batch)
        check_loss(loss, "train_step returned")
        return self.ranks.averaging(loss.detach() if isinstance(loss, Tensor) else loss)

    def _backward(self, batch: Any) -> Callable[[], Tensor | float]:
        assert self._loss is not None
        loss = self._loss(self._called, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"loss returned {shape}; return one scalar tensor, the mean over the batch.")
        joins = self._average is not None and self._average.is_needed  # one exchange in place of two
        mean = (self._average.carrying if self._average and joins else self.ranks.averaging)(loss.detach())
        share = loss if self.accumulate == 1 else loss / self.accumulate
        (share if self.scaler is None else self.scaler.scale(share)).backward()
        return mean

    def _update(self, *, with_scheduler: bool) -> None:
        optimizers = self._optimizer.outer
        if self._clip_grad_norm is not None:
            if self.scaler is not None:
                for optimizer in optimizers:
                    self.scaler.unscale_(optimizer)
            clip_grad_norm_(self._model.parameters(), self._clip_grad_norm)
        for optimizer in optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if with_scheduler and self.scheduler is not None and self._scheduler_every == "step":
            self.scheduler.step()

    def _note_settings(self, optimizer: Optimizer) -> None:
        groups = self._optimizer.groups
        if len(groups) != self._num_groups:
            if len(self._optimizer.parts) > 1:
                raise ConfigError(
                    f"{type(optimizer).__name__} was given another parameter group. Where Session has several "
                    "optimizers, all groups must be there when it is built."
                )
            self._optimizer.check_captured()
            self._num_groups = len(groups)
        self._rates.note(groups)
        self.has_updated = True
        if self.remembers():
            self._noted = self._notes.take(groups)
        if self._config.peak_lr is None:
            self.peak_lr = max(self.peak_lr, self._lr_in_step)

    def graft_lr(self) -> float:
        """The schedule's peak from birth on, joining the decay at the end; of families whose own rate is 1."""
        return self._graft_lr(self.lr)

    def _graft_lr_in_step(self) -> float:
        return self._graft_lr(self._lr_in_step)

    def _graft_lr(self, lr: float) -> float:
        factor = self._config.graft_lr
        if factor is None:
            factor = GRAFT_LR if self._optimizer.is_adam else GRAFT_PEAK_LR / max(self._coming_peak, 1e-12)
        return factor * max(lr, self._coming_peak * self._decay) * self.lr_factor

    @property
    def _coming_peak(self) -> float:
        """The schedule's peak: the largest rate seen, or that which ``OneCycleLR`` is still to rise to."""
        told = 0.0 if self._config.peak_lr is not None else self._optimizer.groups[self._graft_group].get("max_lr", 0.0)
        return max(self.peak_lr, float(told))

    @property
    def _lr_in_step(self) -> float:
        return self._rates.in_step[self._graft_group]

    @property
    def _decay(self) -> float:
        """Where the decay stands that all grafts join at the end of the run, from 1 down to 0."""
        return min(1.0, max(0.0, 1 - self.step / self._planned_steps) / DECAY_SHARE)

    def _lift(self, lr: float) -> float:
        """What the optimizer's rates are multiplied by in a step while a graft trains that was born late."""
        return 1.0 if self._rewarming is None else self._rewarming.factor(lr, self.peak_lr, self._decay)

    def _scale_rates(self, scaled: ScaledRates, optimizer: Optimizer) -> None:
        if self._rewarming is not None:
            self._rewarming.note_births(is_late=self._lr_in_step < DECAYED * self.peak_lr)
        scaled.scale(optimizer, self._lift(self._lr_in_step) * self.lr_factor)

    def _norms(self) -> list[str]:
        """Of all parameters that the optimizer trains, but for grafts. As text: one that is NaN equals itself."""
        arenas = {id(place.arena.slots) for place in places(self._model)}
        trained = (one for one in self._optimizer.parameters() if one.requires_grad and id(one) not in arenas)
        return [repr(float(torch.linalg.vector_norm(own(parameter.detach())))) for parameter in trained]


def check_loss(loss: Any, who: str) -> None:
    """Refuse what is not the loss of a step that the caller made.

    Raises:
        ConfigError: if it is not one number.
    """
    size = loss.numel() if isinstance(loss, Tensor) else getattr(loss, "size", 1)
    if not isinstance(loss, SupportsFloat) or size != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
        raise ConfigError(f"{who} {what} as the loss of the step. It must be one number, the mean over the batch.")


def _with_sparse_gradients(model: nn.Module) -> list[str]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and module.sparse]


def _scales(model: nn.Module) -> list[Tensor]:
    """A scalar on each device that has seeds, which the guard of their grafts reads."""
    found: dict[torch.device, Tensor] = {}
    for place in places(model):
        device = place.state.fault.device
        place.state.loss_scale = found.setdefault(device, torch.ones((), device=device))
    return list(found.values())
