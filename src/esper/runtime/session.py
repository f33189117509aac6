"""The session: where a run's loop and its growth meet."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.checkpoint import store
from esper.contracts.commands import Answer, Command
from esper.contracts.errors import CheckpointError, ConfigError
from esper.contracts.lifecycle import LIVE, State
from esper.contracts.reports import Evaluation, FieldReport, Observation
from esper.kasmina.hosts import growth_config, host_parameters
from esper.runtime.books import Books
from esper.runtime.journal import Journal
from esper.runtime.judging import FEW_GATE_SAMPLES, Judge
from esper.runtime.keeping import Keeping
from esper.runtime.rounds import Round, Rounds
from esper.runtime.run import Run
from esper.runtime.snapshot import Snapshots
from esper.runtime.training import Trainer
from esper.tamiyo.heuristic import HeuristicPolicy, Policy


class Session:
    """Trains a wrapped model and lets it grow.

    Args:
        model: from :func:`esper.wrap`.
        optimizer: built after wrapping, over ``model.parameters()``. Any that needs no closure.
        loss: ``loss(model, batch) -> scalar tensor``, the mean over the batch; :meth:`step` does the rest.
        train_step: instead of ``loss``: ``train_step(batch) -> loss``, a whole step in your own code. Arms call it
            too, on remembered batches; whatever it changes besides model and optimizer must be in ``scheduler``,
            ``scaler`` or ``extra``.
        evaluate: ``evaluate(model) -> esper.Evaluation``: one loss per held-out sample, in a fixed order. Called in
            eval mode without gradients.
        planned_steps: batches of the whole run.
        scheduler: learning-rate scheduler.
        scheduler_every: whether it is stepped with the optimizer or in :meth:`after_epoch`. With ``train_step`` and
            ``"step"`` your own code steps it.
        scaler: ``torch.amp.GradScaler``.
        clip_grad_norm: norm to clip gradients to.
        accumulate: batches per optimizer step.
        extra: further objects with a ``state_dict`` that train along with the model (an average of weights, say).
        loader: the training loader, if it has a ``state_dict``: makes resuming within an epoch exact.
        policy: decides when and where to grow; None is the heuristic.
        directory: where ``audit.jsonl``, ``metrics.jsonl`` and ``checkpoints/`` go; None writes nothing.
        checkpoint_steps: with ``directory``: checkpoint within arms every so many steps, besides every boundary.
        on_event: called with every audit record and every epoch's metrics, a dict with the key ``"event"``.

    Raises:
        ConfigError: if something does not fit together.
        EvaluationError: if ``evaluate`` is not repeatable or returns no sample losses.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        evaluate: Callable[[nn.Module], Evaluation],
        planned_steps: int,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        train_step: Callable[[Any], Tensor | float] | None = None,
        scheduler: Any = None,
        scheduler_every: Literal["step", "epoch"] = "step",
        scaler: Any = None,
        clip_grad_norm: float | None = None,
        accumulate: int = 1,
        extra: Mapping[str, Any] | None = None,
        loader: Any = None,
        policy: Policy | None = None,
        directory: str | Path | None = None,
        checkpoint_steps: int | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        config = growth_config(model)
        if not isinstance(planned_steps, int) or planned_steps < 1:
            raise ConfigError(f"planned_steps must be a whole number of at least 1, not {planned_steps!r}.")
        for name, item in {"loader": loader, **(extra or {})}.items():
            if item is not None and not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
                raise ConfigError(
                    f"{name} is a {type(item).__name__} without a state_dict. Leave it out, or give it one."
                )
        trainer = Trainer(
            model,
            optimizer,
            config,
            planned_steps,
            loss=loss,
            train_step=train_step,
            scheduler=scheduler,
            scheduler_every=scheduler_every,
            scaler=scaler,
            clip_grad_norm=clip_grad_norm,
            accumulate=accumulate,
        )
        judge = Judge(model, evaluate, config.seed)
        self._directory = None if directory is None else Path(directory)
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(self._directory, on_event)
        snapshots = Snapshots(model, optimizer, scheduler, scaler, extra or {})
        self._run = Run(model, config, trainer, judge, snapshots, journal, planned_steps)
        self._rounds = Rounds(self._run, self._checkpoint, checkpoint_steps)
        self._keeping = Keeping(self._run, self._rounds)
        self._policy: Policy = policy or HeuristicPolicy(config)
        self._loader = loader
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0
        self._is_finished = False
        gate_samples = judge.split.gate.numel()
        if gate_samples < FEW_GATE_SAMPLES and config.max_rounds:
            note = f"{gate_samples} gate samples are few (below {FEW_GATE_SAMPLES}): refusals are to be expected."
            journal.write("note", step=0, text=note)

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._run.epoch

    @property
    def step_count(self) -> int:
        """Batches done."""
        return self._run.step

    @property
    def train_flops(self) -> int:
        """FLOPs of the run, of all arms and of the judging: what growth is compared with at equal cost."""
        return self._run.train_flops

    @property
    def probe_flops(self) -> int:
        """The part of :attr:`train_flops` that arms and judging took."""
        return self._run.books.arm_flops + self._run.books.judging_flops

    @property
    def field_reports(self) -> list[FieldReport]:
        """Records of all lifecycles that have ended."""
        return list(self._run.books.reports)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The audit log and the metrics so far."""
        return list(self._run.journal.events)

    def step(self, batch: Any) -> Tensor | float:
        """Train on one batch: forward, backward, clip, optimizer, scheduler, seeds.

        Returns:
            The loss, a detached scalar that was not read from the device.
        """
        self._refuse_if_finished()
        loss, flops = self._run.trainer.train(batch, self._run.structure)
        self._after(batch, loss, flops)
        return loss

    def after_step(self, batch: Any, loss_value: Tensor | float) -> None:
        """Tell the session about a step that your own loop made with ``train_step``.

        Args:
            batch: the batch it took.
            loss_value: its loss.
        """
        self._refuse_if_finished()
        if self._run.trainer.owns_loop:
            raise ConfigError("after_step is for sessions with train_step; with loss, call session.step(batch).")
        flops = self._run.trainer.cost(batch, self._run.structure)
        if flops is None:  # a step of a kind that was never counted: replay it once, then put everything back
            here = self._run.capture()
            _, flops = self._run.trainer.train(batch, self._run.structure, replayed=(None,))
            self._run.restore(here)
        self._after(batch, loss_value.detach() if isinstance(loss_value, Tensor) else loss_value, flops)

    def after_epoch(self) -> None:
        """End an epoch: evaluate, decide, report, checkpoint."""
        self._refuse_if_finished()
        self._run.epoch += 1
        self._run.trainer.end_epoch()
        if self._run.config.boundary_steps is None:
            self._boundary()

    def finish(self) -> None:
        """End the run: every lifecycle gets its outcome, grafts that passed their keep gate become fossils."""
        self._refuse_if_finished()
        self._rounds.abandon("the run was finished")
        self._keeping.finish(self._run.measure())
        measured = self._run.judge.measure()
        select = self._run.judge.split.select
        self._run.journal.write(
            "finished",
            step=self._run.step,
            select_loss=measured.loss(select),
            select_metric=measured.metric(select),
            train_flops=self.train_flops,
        )
        self._is_finished = True
        self._run.trainer.detach()
        self._checkpoint()

    def submit(self, command: Command) -> Answer:
        """Carry out a command, or refuse it with a reason; never raises for a refusal.

        Seeds germinated by command become candidates of the next round. Promotions are refused: they follow from what
        was measured.
        """
        return self._run.submit(command)

    def save(self, path: str | Path) -> Path:
        """Write everything that is needed to go on to the byte, whole or not at all.

        Args:
            path: a directory; it keeps the last two generations.

        Returns:
            The folder of the new generation.
        """
        return store.write(Path(path), self._state())

    def load(self, path: str | Path) -> None:
        """Go on where a checkpoint stands: regrows the architecture, then finishes an arm that was cut.

        Raises:
            CheckpointError: if there is none, it is damaged, or it belongs to another run; nothing was changed then.
        """
        state = store.read(Path(path))
        if self._loader is not None and state["loader"] is None:
            raise CheckpointError(
                "The checkpoint holds no position in the data: it was saved by a session without loader."
            )
        self._run.restore(state)
        self._run.books = Books.from_dict(state["books"])
        self._run.recent = state["recent"]
        self._run.journal.restore(state["events"])
        self._rounds.current = None if state["round"] is None else Round.from_dict(state["round"])
        self._rounds.fallback = state["fallback"]
        self._keeping.load_state_dict(state["keeping"])
        self._loss_sum, self._loss_count, self._is_finished = state["losses"]
        if self._loader is not None:
            self._loader.load_state_dict(state["loader"])
        if self._rounds.current is not None and self._rounds.current.run is not None:
            self._rounds.judge()

    def _state(self) -> dict[str, Any]:
        current = self._rounds.current
        return {
            **self._run.capture(),
            "books": self._run.books.to_dict(),
            "recent": self._run.recent,
            "events": self._run.journal.events,
            "round": None if current is None else current.to_dict(),
            "fallback": self._rounds.fallback,
            "keeping": self._keeping.state_dict(),
            "losses": (self._loss_sum, self._loss_count, self._is_finished),
            "loader": None if self._loader is None else self._loader.state_dict(),
        }

    def _checkpoint(self) -> None:
        if self._directory is not None:
            self.save(self._directory / "checkpoints")

    def _after(self, batch: Any, loss: Tensor | float, flops: int) -> None:
        run = self._run
        run.books.run_flops += flops
        run.trainer.step += 1
        self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1
        rates = run.trainer.take_rates()
        if run.books.alive:
            run.advance()
            run.recent = [*run.recent[1 - run.ramp_steps :], batch] if run.in_state(*LIVE, State.CULLED) else []
        self._keeping.after_step()
        if self._rounds.current is not None:
            self._rounds.remember(batch, rates, flops)
        every = run.config.boundary_steps
        if every is not None and run.step % every == 0:
            self._boundary()

    def _boundary(self) -> None:
        run, split = self._run, self._run.judge.split
        train_loss = float(self._loss_sum) / max(1, self._loss_count)
        self._loss_sum, self._loss_count = 0.0, 0
        now = run.judge.measure()
        run.books.train_losses.append(train_loss)
        run.books.select_losses.append(now.loss(split.select))
        run.journal.write(
            "epoch",
            epoch=run.epoch,
            step=run.step,
            lr=run.trainer.lr,
            train_loss=train_loss,
            val_loss=now.loss(split.select),
            val_metric=now.metric(split.select),
            run_flops=run.books.run_flops,
            arm_flops=run.books.arm_flops,
            judging_flops=run.books.judging_flops,
        )
        if self._rounds.current is None:
            self._keeping.at_boundary(now)
            for command in self._policy.decide(self._observation()):
                run.submit(command)
            candidates = run.in_state(State.GERMINATED)
            if candidates:
                self._rounds.begin(candidates)
        self._checkpoint()

    def _observation(self) -> Observation:
        run = self._run
        return Observation(
            step=run.step,
            planned_steps=run.planned_steps,
            epoch=run.epoch,
            train_losses=run.books.train_losses,
            select_losses=run.books.select_losses,
            places=[place.report() for place in run.places.values()],
            rounds_done=run.books.rounds_begun,
            active=len(run.in_state(*LIVE)),
            host_parameters=host_parameters(run.model),
            grown_parameters=sum(place.arena.num_parameters for place in run.places.values()),
        )

    def _refuse_if_finished(self) -> None:
        if self._is_finished:
            raise ConfigError("The session is finished. Build a new one to train further.")
