"""The session: where a run's loop and its growth meet."""

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.commands import Answer, Command, SeedId
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.events import Finished, FlagsResolved, Model, Note
from esper.contracts.flags import Flags, from_told, none_in_play, resumed, told
from esper.contracts.lifecycle import State
from esper.contracts.reports import Evaluation, FieldReport
from esper.kasmina.host.anchoring import anchor_of
from esper.kasmina.host.refusals import refuse_sharded
from esper.kasmina.host.summary import anatomy
from esper.kasmina.host.wrapping import growth_config, refuse_changed
from esper.runtime.arguments import (
    NO_BOUNDARY,
    boundary_expected,
    check_flags,
    check_functions,
    check_parts,
    check_ranks,
    check_run,
    check_sharded,
    directory_of,
    inner_of,
    listeners,
    path_of,
    together,
)
from esper.runtime.checkpoints import FOLDER, Checkpoints
from esper.runtime.debugging import debugger_for
from esper.runtime.growth import Growth, Position
from esper.runtime.identity import Identity
from esper.runtime.judging.judge import FEW_GATE_SAMPLES, Judge
from esper.runtime.record.journal import Journal
from esper.runtime.record.outbox import Listener
from esper.runtime.run import Run
from esper.runtime.state.batches import check_copyable, check_storable
from esper.runtime.state.snapshot import Snapshots
from esper.runtime.training.accumulation import refuse_uncounted
from esper.runtime.training.optimizers import HostOptimizer
from esper.runtime.training.ranks import Ranks
from esper.runtime.training.sharding import mesh_of
from esper.runtime.training.trainer import Trainer, check_loss
from esper.runtime.trying.arm_rank import ArmRank
from esper.runtime.trying.meeting import lines
from esper.runtime.trying.steps import Step, Steps
from esper.tamiyo.heuristic import HeuristicPolicy, Policy


class Session:
    """Trains a wrapped model and lets it grow.

    Args:
        model: from :func:`esper.wrap`, sharded by ``fully_shard`` or not; or ``DistributedDataParallel`` around that.
        optimizer: built after wrapping, over ``model.parameters()``. Any that needs no closure, also one that wraps
            another; or a list of several that share the parameters out (Muon and AdamW). Whatever else they hold must
            be in a module of ``extra``.
        loss: ``loss(model, batch) -> scalar tensor``, the mean over the batch; :meth:`step` does the rest.
        train_step: instead of ``loss``: ``train_step(batch) -> loss``, a whole step in your own code. Both are also
            called in arms, on remembered batches; whatever they change besides model, plain attributes of its modules
            and optimizer must be in ``scheduler``, ``scaler`` or ``extra``. Where models are compiled, or the loop is
            your own (:meth:`after_step`), they are also called on copies of batches whose shapes are new, to count
            FLOPs: a few times, until what others cost is known from those. And at the first step of a run that may grow
            they are called on copies of its batch, to try whether newborn grafts can learn at every place: twice where
            all can, and all is undone. Not so where models are compiled.
        evaluate: ``evaluate(model) -> esper.Evaluation``: one loss per held-out sample, in a fixed order. Called in
            eval mode without gradients.
        planned_steps: batches of the whole run.
        scheduler: learning-rate scheduler; or a list, where there are several optimizers.
        scheduler_every: whether it is stepped with the optimizer or in :meth:`after_epoch`. With ``train_step`` and
            ``"step"`` your own code steps it.
        scaler: ``torch.amp.GradScaler``.
        clip_grad_norm: norm to clip the gradients of the model to, grafts included; those of ``extra`` are not clipped.
        accumulate: batches per optimizer step.
        extra: further objects with a ``state_dict`` that train along with the model (an average of weights, a criterion
            with parameters). Gradients of modules are captured with them. Where Accelerate gathers gradients,
            :class:`esper.integrations.accelerate.Accumulation` must be among them.
        loader: the training loader, if it has a ``state_dict``, as torchdata's ``StatefulDataLoader`` has: makes
            resuming within an epoch exact. If it has
            ``last_index`` and ``batch_at(index)`` too, as :class:`esper.BatchLoader` has, batches are not held in
            memory for arms but drawn again.
        policy: decides when and where to grow; None is the heuristic. One that remembers has ``state_dict`` and
            ``load_state_dict``.
        directory: where ``audit.jsonl``, ``metrics.jsonl`` and ``checkpoints/`` go, and on whose disk captured states
            of the run lie while they are not needed; None writes nothing, and keeps them in memory.
        checkpoint_steps: with ``directory``: checkpoint within arms every so many steps, besides every boundary.
        saves_in_background: whether checkpoints on the way are written from a copy in host memory while the run goes
            on; it waits only for the copy, and for the checkpoint before. :meth:`save` and the last one always wait.
        flops: whether FLOPs are counted. Without, :attr:`train_flops` and all FLOPs of logs and reports are 0; then
            ``compare="flops"`` and ``max_train_flops`` are refused.
        flags: feature flags of the model, from :func:`esper.flags.resolve`; None has none in play. Wrap the model with
            :func:`esper.flags.applied`. A checkpoint brings its own back, but for what these switch off by name.
        held_out: with several ranks: whether ``evaluate`` gives the same samples on each (``"same"``; rank 0 is
            believed) or each rank's own (``"shards"``; they are judged together).
        rank_timeout: with several ranks: seconds for which each waits for the others.
        debug: whether every decision is written to ``debug.jsonl`` in ``directory``, with all that it went by, and
            before every step of the optimizer all is checked that must hold of seeds and grafts, which is slow. None
            asks the environment: ``ESPER_DEBUG=1``.
        on_event: one listener or several, from the constructor on: each is called with every line of both logs, a dict
            with the key ``"event"``, as :meth:`subscribe` says.

    At the first step a place that Esper chose and that cannot grow is left out, and a note says why; one that was named
    is refused by a ``ConfigError``.

    :meth:`step`, :meth:`after_step` and :meth:`after_epoch` raise HarmedError where a run was harmed that is to stop
    then (``GrowthConfig.emergency_response``, ``max_emergencies``).

    A session that is built on a model or an optimizer takes over from an earlier one on it, which can go on no more.

    Raises:
        ConfigError: if something does not fit together.
        EvaluationError: if ``evaluate`` is not repeatable or returns no sample losses.
        RankError: here and from any method, if ranks do not agree or one does not answer.

    With ``debug`` any method may raise InvariantError, which names the seed and what to report.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
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
        saves_in_background: bool = False,
        flops: bool = True,
        flags: Flags | None = None,
        on_event: Listener | Iterable[Listener] | None = None,
        debug: bool | None = None,
        held_out: Literal["same", "shards"] = "same",
        rank_timeout: float = 600.0,
    ) -> None:
        everybody, called = Ranks(rank_timeout), model
        model = inner_of(model)
        config = growth_config(model)
        refuse_sharded(model)
        mesh = mesh_of(model, everybody.size)
        refuse_changed(model)
        check_functions(evaluate=evaluate, loss=loss, train_step=train_step)
        check_ranks(everybody, config, held_out, is_parallel=called is not model or mesh is not None)
        ranks = Ranks(rank_timeout, are_apart=True) if config.arms == "devices" else everybody
        self._is_for_arms = ranks is not everybody and everybody.rank > 0
        if self._is_for_arms:
            directory = loader = None  # all that it needs it is sent
        check_sharded(mesh, scaler)
        check_parts(extra, policy, flags, checkpoint_steps, directory)
        heard = listeners(on_event)
        self._flags_given = flags or none_in_play()
        check_flags(model, self._flags_given)
        check_run(model, config, planned_steps, counts_flops=flops, keeping={"loader": loader, **(extra or {})})
        scheduler = together(scheduler) if isinstance(scheduler, list | tuple) else scheduler
        host_optimizer = HostOptimizer(optimizer, model, extra or {})
        if train_step is not None:
            refuse_uncounted(host_optimizer.wrappers, extra or {})
        with ExitStack() as undo:  # a session that could not be built leaves no hooks on the optimizer
            debugger = debugger_for(model, host_optimizer.parts, is_asked=debug)
            if debugger is not None:
                undo.callback(debugger.detach)
            trainer = Trainer(
                model,
                host_optimizer,
                config,
                planned_steps,
                loss=loss,
                train_step=train_step,
                scheduler=scheduler,
                scheduler_every=scheduler_every,
                scaler=scaler,
                clip_grad_norm=clip_grad_norm,
                accumulate=accumulate,
                called=called,
                ranks=ranks,
                mesh=mesh,
            )
            undo.callback(trainer.detach)
            judge = Judge(model, evaluate, config.seed, ranks, is_sharded=held_out == "shards")
            shared = None if directory is None else directory_of(directory, "directory")
            self._directory = None if shared is None else ranks.own(shared)
            self._saves_to = None if shared is None else ranks.own(shared / FOLDER)
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            self._must_load = self._saves_to is not None and any(self._saves_to.glob("[0-9]*"))
            journal = Journal(self._directory, is_new=not self._must_load)
            for listener in heard:
                journal.subscribe(listener)
            snapshots = Snapshots(model, host_optimizer, scheduler, scaler, extra or {}, journal, self._directory, mesh)
            self._run = Run(
                model,
                config,
                trainer,
                judge,
                snapshots,
                journal,
                planned_steps,
                functions=(loss, train_step, evaluate),
                extra=extra or {},
                loader=loader,
                is_counting=flops,
                flags=self._flags_given,
            )
            undo.callback(self._run.given_up.detach)
            if debugger is not None:
                debugger.follow(self._run, self._directory, is_new=not self._must_load)
                self._run.debug, self._run.seeds.judged = debugger, debugger.judged
            self._steps = Steps(self._run)
            self._boundary_expected = boundary_expected(config, planned_steps, loader)
            policy = policy or HeuristicPolicy(config)
            identity = Identity(self._run, policy, loader)
            self._lines = [] if ranks is everybody else lines(everybody, self._run, rank_timeout)
            self._growth = Growth(
                self._run, policy, lambda: self._checkpoints.write(), checkpoint_steps, lines=self._lines
            )
            self._checkpoints = Checkpoints(
                self._run,
                self._growth,
                identity,
                loader,
                policy,
                self._directory,
                self._saves_to,
                in_background=saves_in_background,
            )
            self._run.compare_ranks()
            undo.pop_all()
        growth = weakref.ref(self._growth)  # the optimizer's hooks may outlive this session
        trainer.remembers = lambda: (current := growth()) is not None and current.window is not None
        trainer.take_charge()
        journal.write(Model(step=0, planned_steps=planned_steps, metric=judge.metric, **anatomy(model)))
        if self._flags_given.are_in_play:
            self._record_flags()
        if judge.num_not_finite:
            text = (
                f"{judge.num_not_finite} of {judge.num_samples} held-out losses are not finite: nothing can be judged."
            )
            journal.write(Note(step=0, text=text))
        if judge.num_without_metric:
            text = (
                f"{judge.num_without_metric} of {judge.num_samples} values of Evaluation.correct are not finite: these "
                "samples are left out of the metric from now on. Any other that is not finite later fails the gate."
            )
            journal.write(Note(step=0, text=text))
        for name, why in anchor_of(model).not_offered.items():
            journal.write(Note(step=0, text=f"Not offered: {name!r}, {why}."))
        gate_samples = judge.split.gate.numel()
        if gate_samples < FEW_GATE_SAMPLES and config.max_rounds:
            note = f"{gate_samples} gate samples are few (below {FEW_GATE_SAMPLES}): refusals are to be expected."
            journal.write(Note(step=0, text=note))
        journal.deliver()

    def serve_arms(self) -> bool:
        """With ``GrowthConfig(arms="devices")``: on all ranks but 0, run arms until the run on rank 0 is finished.

        Returns:
            Whether this rank has done so; False at once on the rank that trains, and where arms run elsewhere.

        Raises:
            RankError: if the run ends without :meth:`finish`.
        """
        if self._is_for_arms:
            ArmRank(self._run, self._growth.rounds, self._lines[0]).serve()
        return self._is_for_arms

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._run.epoch

    @property
    def step_count(self) -> int:
        """Batches done."""
        return self._run.step

    @property
    def position(self) -> Position:
        """Where the run stands, also within an arm. Reads nothing from the device; any thread may ask."""
        return self._growth.position

    @property
    def is_finished(self) -> bool:
        """Whether :meth:`finish` is over. Any thread may ask."""
        return self._run.is_finished

    @property
    def ranks(self) -> Ranks:
        """Who trains together."""
        return self._run.ranks

    @property
    def flags(self) -> Flags:
        """Feature flags of the run."""
        return self._run.flags

    @property
    def train_flops(self) -> int:
        """FLOPs of the run, of all arms and of the judging: what growth is compared with at equal cost.

        0 with ``flops=False``.
        """
        return self._run.costs.train_flops

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
        """The audit log and the metrics so far, but for what the seeds have sensed, which only the files hold."""
        return list(self._run.journal.events)

    def trains(self, module: nn.Module) -> bool:
        """Whether a module, or a place of one, is part of the model."""
        return any(module is one for one in self._run.model.modules())

    def on_any_rank(self, is_so: bool) -> bool:
        """Whether something is so on any rank, such as a request to stop (:class:`esper.Interrupt`).

        All ranks must ask at the same points of their loops, and are answered alike: so all leave after the same step.
        """
        return self._run.ranks.any(is_so, "what the loop asks")

    def step(self, batch: Any) -> Tensor | float:
        """Train on one batch: forward, backward, clip, optimizer, scheduler, seeds.

        Returns:
            The loss, a detached scalar that was not read from the device.
        """
        run = self._run
        with run.inbox.turn():
            self._refuse_if_closed()
            if self._growth.is_due:  # its arms were interrupted
                self._end_step()
            self._refuse_unfit(batch)
            begun = time.perf_counter()
            step = self._steps.make(batch, in_window=self._growth.window is not None)
            self._after(step, begun)
            self._stop_if_harmed()
            return step.loss

    def after_step(self, batch: Any, loss_value: Tensor | float) -> None:
        """Tell the session about a step that your own loop made with ``train_step``.

        Args:
            batch: the batch it took, as it was before the step.
            loss_value: its loss.

        Raises:
            ConfigError: if the loss is not one number, or ``train_step`` changes its batch: hand it a copy.
        """
        run = self._run
        if run.trainer.owns_loop:
            raise ConfigError("after_step is for sessions with train_step; with loss, call session.step(batch).")
        check_loss(loss_value, "after_step was given")
        with run.inbox.turn():
            self._refuse_if_closed()
            self._growth.interrupt()
            self._refuse_unfit(batch)
            self._after(self._steps.made(batch, loss_value, in_window=self._growth.window is not None), run.pulse.ended)
            run.trainer.tell_scale()
            run.pulse.rest()
            self._stop_if_harmed()

    def after_epoch(self) -> None:
        """End an epoch: evaluate, decide, report, checkpoint."""
        run = self._run
        with run.inbox.turn():
            self._refuse_if_closed()
            if self._growth.is_due:
                self._end_step()
            run.trainer.epoch += 1
            run.forecast.end_epoch()
            run.trainer.end_epoch(lambda: run.judge.measure().loss(run.judge.split.select))
            if run.config.boundary_steps is None:
                self._boundary()
            run.pulse.rest()
            self._stop_if_harmed()

    def finish(self) -> None:
        """End the run: every lifecycle gets its outcome, grafts that passed their keep gate become fossils."""
        run = self._run
        with run.inbox.turn():
            self._refuse_if_closed()
            self._growth.finish()
            measured = run.judge.measure()
            select = run.judge.split.select
            run.journal.write(
                Finished(
                    step=run.step,
                    select_loss=measured.loss(select),
                    select_metric=measured.metric(select),
                    train_flops=self.train_flops,
                )
            )
            run.trainer.detach()
            if run.debug is not None:
                run.debug.check()
                run.debug.detach()
            self._growth.rounds.runner.close()
            run.is_finished = True  # only now: what was interrupted may be finished again
            run.given_up.detach()
            self._checkpoints.write()
            self._checkpoints.close()

    def submit(self, command: Command) -> Answer:
        """Carry out a command, or refuse it with a reason; never raises for a refusal.

        A seed germinated with ``trial="round"`` becomes a candidate of the next round, with ``trial="live"`` it grows
        in the run itself. Promotions are refused: they follow from what was measured.

        Any thread may call this while another one trains. It is answered at the end of that step, between two steps of
        an arm (where every command is refused, a cancellation as well), or at once if nobody trains. In the middle of
        a step (in ``loss``, ``evaluate``, ``policy.decide``) it is refused; a listener may call it.
        """
        return self._submit(command, partial(self._run.seeds.submit, command))

    def submit_once(self, command: Command) -> Answer:
        """As :meth:`submit`, for one who may have to ask again: a command whose ``id`` was answered before gets that
        answer again, and nothing is done.

        Answers stand in checkpoints, so that this holds in a run that goes on from one. What was refused in the middle
        of a step, or because arms ran, counts as not answered.
        """
        seeds = self._run.seeds
        return self._submit(command, partial(seeds.submit_once, command.id, partial(seeds.submit, command)))

    def _submit(self, command: Command, request: Callable[[], Answer]) -> Answer:
        if not isinstance(command, Command):
            raise ConfigError(f"A session is given an esper.contracts.commands.Command, not {command!r:.80}.")
        self._refuse_for_arms()
        try:
            return self._run.inbox.ask(request)
        except TransitionError as error:  # none of the seeds': it was asked in the middle of a step
            return self._run.seeds.refuse(command, str(error))

    def answer_to(self, command_id: str, *, is_durable: bool = False) -> Answer | None:
        """The answer of :meth:`submit_once` to a command; None if there is none yet. Any thread may ask.

        Args:
            command_id: :attr:`Command.id`.
            is_durable: whether to tell only what the newest checkpoint knows too, so that a run which goes on from it
                does. A session without ``directory`` has no other life: it tells all.
        """
        if is_durable and self._directory is not None and command_id not in self._checkpoints.answered:
            return None
        return self._run.books.answers.get(command_id)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Let a listener hear every event from now on: the lines of both logs, each a dict with the key ``"event"``.

        It is called where nothing is half done: at the end of a step, of an epoch, of the run, of :meth:`load` and of a
        command, and between two steps of an arm; there it may submit commands, and after a step, an epoch or a command
        do anything that a loop may do. An error that it raises is told by a ``note`` and ends nothing: it goes on
        hearing. ``KeyboardInterrupt`` and ``SystemExit`` pass.

        Returns:
            Call it to end that.
        """
        (one,) = listeners([listener]) or [None]
        if one is None:
            raise ConfigError("A listener must be a function that is called with every event, not None.")
        return self._run.journal.subscribe(one)

    def tell_bus(self, counts: Callable[[], dict[str, Any]]) -> None:
        """Let ``vitals`` tell the counts of a message bus that this run is on; :class:`Link` calls it."""
        self._run.pulse.bus = counts

    def germinate(
        self,
        layer_id: str,
        seed_id: SeedId = "all",
        blueprint: str = "bottleneck_mlp",
        strategy: str = "fixed_ramp",
        settings: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Let a seed grow in the run itself, from the next free boundary on; its twin is trained afterwards.

        Args:
            layer_id: name of the place, ``first:last`` for a span, ``""`` for the whole model, ``"blocks.*.mlp"`` or
                ``"*"`` for a colony.
            seed_id: the seed, or ``"all"`` for one graft over all of them.
            blueprint: what to grow.
            strategy: how to blend it in.
            settings: the blueprint's hyper-parameters; None makes it as large as the configured budgets allow.

        Raises:
            ConfigError: if place, blueprint, strategy or a setting do not exist or do not fit, naming what is valid.
            TransitionError: if the seed is not DORMANT or the shield has a veto, with the reason.
        """

        def request() -> Answer:
            self._refuse_if_replaced()
            if settings is not None and not isinstance(settings, Mapping):
                raise ConfigError(f"settings must be a mapping such as {{'hidden': 8}}, or None, not {settings!r:.80}.")
            chosen = self._growth.sized_for(layer_id, seed_id, blueprint) if settings is None else dict(settings)
            return self._run.seeds.ask(
                Command(
                    layer_id,
                    seed_id,
                    State.GERMINATED,
                    "asked for",
                    who="user",
                    blueprint=blueprint,
                    settings=chosen,
                    strategy=strategy,
                    trial="live",
                )
            )

        return self._run.inbox.ask(request)

    def cancel(self, layer_id: str, seed_id: SeedId) -> Answer:
        """Stop what a seed is growing: at once before it is blended in, later by blending it out.

        If the held-out loss does not recover from that, the run goes back to before the graft was blended in.

        Raises:
            TransitionError: if it grows nothing, naming what is allowed.
        """
        command = Command(layer_id, seed_id, State.CANCELLED, "asked for", who="user")
        return self._run.inbox.ask(partial(self._run.seeds.ask, command))

    def rollback(self, command_id: str | None = None) -> Answer:
        """Go back to the last good state: parameters, buffers, optimizer, scheduler, scaler, grafts, controller.

        Args:
            command_id: of the command that asks for it: it is done once for each, as :meth:`submit_once` says, and a
                refusal is an answer then.

        Grafts that were not live then are ROLLED_BACK and their seeds rest; what is on trial ends, arms that were
        interrupted among it. Ctrl-C takes effect once all of it is done. The position in the data, the random streams,
        the audit log and the books are not restored.

        Raises:
            TransitionError: if there is none that may be gone back to, or arms are running.
        """

        def request() -> Answer:
            self._refuse_if_replaced()
            self._growth.roll_back()
            return Answer(True, command_id=command_id or "")

        seeds = self._run.seeds
        return self._run.inbox.ask(request if command_id is None else partial(seeds.submit_once, command_id, request))

    def rechunk(self, layer_id: str, num_seeds: int) -> None:
        """Deal a place's channels to another number of seeds. Its fossils and what was sensed stay.

        Raises:
            ConfigError: if there is no such place, or it has fewer channels than that.
            TransitionError: if one of its seeds is not DORMANT.
        """

        def request() -> None:
            self._refuse_if_replaced()
            self._growth.rechunk(layer_id, num_seeds)

        self._run.inbox.ask(request)

    def save(self, path: str | Path) -> Path:
        """Write everything that is needed to go on to the byte, whole or not at all.

        Args:
            path: a directory; it keeps the last two generations.

        Returns:
            The folder of the new generation.

        Raises:
            ConfigError: if ``path`` is no path, or there is a file in its place.
        """
        self._refuse_for_arms()
        directory = self._run.ranks.own(directory_of(path, "path"))
        with self._run.inbox.turn():
            return self._checkpoints.save(directory)

    def load(self, path: str | Path) -> None:
        """Go on where a checkpoint stands: regrows the architecture, then finishes an arm that was cut.

        Raises:
            CheckpointError: if there is none, it is damaged, or it belongs to another run; nothing was changed then.
        """
        self._refuse_for_arms()
        state = self._checkpoints.read(path_of(path, "path"))
        with self._run.inbox.turn():
            self._refuse_if_finished()
            self._checkpoints.restore(state)
            self._must_load = False
            self._resume_flags()
            if self._growth.is_due:
                self._end_step()

    def _resume_flags(self) -> None:
        """Those with which the run began, but for what was switched off by name since."""
        run = self._run
        recorded = [event for event in run.journal.events if event["event"] == FlagsResolved.name]
        first = (from_told(event["model_id"], event["flags"]) for event in recorded if event["step"] == 0)
        run.flags = resumed(next(first, none_in_play()), self._flags_given)
        if (recorded[-1]["flags"] if recorded else told(none_in_play())) != told(run.flags):
            self._record_flags()

    def _record_flags(self) -> None:
        run = self._run
        run.journal.write(FlagsResolved(step=run.step, model_id=run.flags.model_id, flags=told(run.flags)))

    def _after(self, step: Step, begun: float) -> None:
        run = self._run
        run.books.run_flops += step.flops
        run.forecast.note(step.flops)
        run.trainer.step += 1
        run.losses.add(step.loss)
        self._growth.after_step(step)
        run.pulse.beat(run.step, begun)
        self._end_step()
        if run.step in self._boundary_expected and not run.books.select_losses:
            text = NO_BOUNDARY.format(steps=run.step, share=run.fraction)
            if run.step == self._boundary_expected[-1]:
                run.journal.warn("boundaries", text)
            else:
                run.journal.write(Note(step=run.step, text=text))

    def _end_step(self) -> None:
        """What may follow a step. Checkpoints only once all of it is done: a resumed run does not come here again."""
        self._checkpoints.settle(waits=False)
        every, is_due = self._run.config.boundary_steps, self._growth.is_due
        is_of_boundary = self._growth.trials.is_due  # which is over then, all but this
        if is_due:
            self._growth.run_arms()
        if every is not None and self._run.step % every == 0 and not is_of_boundary:
            self._boundary()
        elif is_due:
            self._checkpoints.write()

    def _boundary(self) -> None:
        self._run.trainer.refuse_unseen_steps()
        self._growth.at_boundary(self._run.losses.take_mean())
        self._checkpoints.write()

    def _stop_if_harmed(self) -> None:
        """A run that is not to go on by itself ends here, with a checkpoint of the state that it went back to."""
        emergency = self._growth.emergency
        if emergency.must_stop:
            self._checkpoints.write()
            self._checkpoints.close()
            emergency.stop()

    def _refuse_if_closed(self) -> None:
        self._refuse_if_finished()
        if self._must_load:
            raise ConfigError(
                f"{self._directory} holds another run. Go on with it by session.load({str(self._directory)!r} + "
                f"'/{FOLDER}'), or name another directory."
            )

    def _refuse_unfit(self, batch: Any) -> None:
        """At the first step, not when the first round is checkpointed."""
        if self._run.step == 0:
            refuse_changed(self._run.model)
            check_copyable(batch)
            if self._directory is not None or self._lines:
                check_storable(batch)

    def _refuse_if_replaced(self) -> None:
        self._refuse_for_arms()
        if self._run.trainer.is_replaced:
            raise ConfigError(
                "Another Session was built on this model or this optimizer since, and has taken over. Go on with that "
                "one, or build a new one."
            )

    def _refuse_for_arms(self) -> None:
        if self._is_for_arms:
            raise ConfigError(
                "This rank runs arms for the run on rank 0. Call session.serve_arms() before the loop; it is True here "
                "once the run is over, and False on rank 0, which trains."
            )

    def _refuse_if_finished(self) -> None:
        self._refuse_if_replaced()
        if self._run.is_finished:
            raise ConfigError("The session is finished. Build a new one to train further.")
