"""All that happens to seeds beside the training: rounds, live trials, keeping, emergencies, decisions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Command, SeedId
from esper.contracts.errors import CheckpointError, ConfigError, TransitionError
from esper.contracts.events import Epoch, Note, Rechunked, TelemetryRead
from esper.contracts.lifecycle import LIVE, State
from esper.contracts.reports import Observation
from esper.kasmina.host.wrapping import place_named
from esper.runtime.emergency import Emergency
from esper.runtime.judging.judge import Measurement
from esper.runtime.record.books import FALLING, Books
from esper.runtime.run import Run
from esper.runtime.trying.parcels import Line
from esper.runtime.trying.replay import Round, Window
from esper.runtime.trying.rounds import Rounds
from esper.runtime.trying.steps import Step
from esper.runtime.trying.trials import LiveTrial, Trials
from esper.runtime.watching.keeping import Keeping
from esper.runtime.watching.observing import Observer
from esper.runtime.watching.recovery import Recovery
from esper.tamiyo import shield
from esper.tamiyo.heuristic import Policy
from esper.tamiyo.sizing import budget_per_row, fitting, parameter_room, ports_at

ARMS_RUN = "Arms are running. Ask again after this step."


class Position(NamedTuple):
    """Where a run stands.

    Args:
        step: batches of the run itself that are done, of ``planned_steps``.
        planned_steps: batches that the run plans.
        epoch: epochs that are over.
        arm: name of the arm that runs; None where the run itself does.
        arm_step: steps that it has done, of ``arm_steps``.
        arm_steps: None until its first step has shown what it costs.
    """

    step: int
    planned_steps: int
    epoch: int
    arm: str | None
    arm_step: int
    arm_steps: int | None


class Growth:
    """Lets a run grow.

    Args:
        run: the run.
        policy: decides when and where.
        checkpoint: writes a checkpoint of the session.
        checkpoint_steps: steps of an arm between two checkpoints; None writes them at arm boundaries only.
        lines: to ranks that run arms.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        checkpoint: Callable[[], None],
        checkpoint_steps: int | None,
        lines: Sequence[Line] = (),
    ) -> None:
        self._run, self.policy, self._checkpoint = run, policy, checkpoint
        self.recovery = Recovery(run, policy)
        self.rounds = Rounds(run, self.recovery, checkpoint, checkpoint_steps, lines)
        self.trials = Trials(run, self.recovery, checkpoint, checkpoint_steps)
        self.keeping = Keeping(run, self.recovery)
        self.emergency = Emergency(run, self.rounds, self.trials, self.keeping, self.recovery)
        self.observer = Observer(run)
        self._are_arms_running = False
        run.seeds.veto = self._veto

    @property
    def is_due(self) -> bool:
        """Whether arms are to be run, or to be run on."""
        return self.rounds.is_due or self.trials.is_due

    @property
    def window(self) -> Window | None:
        """Steps that are remembered, to be taken once more, or are just taken once more."""
        trial = self.trials.current
        return self.rounds.current or (None if trial is None else trial.window)

    def after_step(self, step: Step) -> None:
        """What a training step moves: alphas, isolated training, flags, losses, the memory of rounds and trials."""
        run = self._run
        if run.books.alive:
            run.advance(step.loss)
            run.incubate()
        if not run.in_state(*LIVE, *FALLING):
            run.recent.clear()
        else:
            run.recent.add(step.batch)
        self.keeping.after_step()
        self.emergency.after_step(step.loss)
        if self.rounds.current is not None:
            self.rounds.remember(step)
        if self.trials.current is not None:
            self.trials.after_step(step)

    @property
    def position(self) -> Position:
        """Where the run stands; reads nothing from the device, and may be asked from another thread."""
        run = self._run
        while True:
            window = self.window
            captured = None if window is None else window.run  # read once: it may go meanwhile
            if window is not None and captured is not None:
                clock, steps = captured["clock"], window.arm_steps if isinstance(window, Round) else len(window.batches)
                return Position(clock["step"], run.planned_steps, clock["epoch"], run.arm, window.arm_step, steps)
            position = Position(run.step, run.planned_steps, run.epoch, None, 0, None)
            if window is None or window.run is None:  # else an arm began meanwhile, and its step may have been read
                return position

    def run_arms(self) -> None:
        """Judge what is due. Goes on where it was cut."""
        with self._in_arms():
            if self.rounds.is_due:
                self.rounds.judge()
            if self.trials.is_due:
                self.trials.judge()

    @contextmanager
    def _in_arms(self) -> Iterator[None]:
        self._are_arms_running = True
        try:
            yield
        finally:
            self._are_arms_running = False

    def at_boundary(self, train_loss: float) -> None:
        """Evaluate, report, decide, promote, and begin what is to be tried next.

        Args:
            train_loss: mean training loss since the last boundary.
        """
        run = self._run
        run.agree()
        now = self._measure(train_loss)
        if run.journal.is_read and (sensed := self.observer.sensed()):
            run.journal.write(TelemetryRead(epoch=run.epoch, step=run.step, places=sensed))
        run.pulse.write(run.step)
        if not self.emergency.at_boundary(now):
            if self.trials.current is not None:
                self.trials.at_boundary(now)
                self.keeping.pass_time()
            elif self.rounds.current is not None:  # its window: nothing is on trial in the run itself
                self._keep_if_well(now)
            else:
                self.keeping.at_boundary(now)
                if not self.keeping.is_removing:  # a twin that still changes would be no fair one
                    seen = self.observer.observe()
                    self._keep_if_well(now)
                    self._begin(seen, now)
        for place in run.places.values():
            place.telemetry.reset()
        if self.trials.is_due:
            with self._in_arms():
                self.trials.judge()

    def finish(self) -> None:
        """Decide every lifecycle that is still open."""
        self.rounds.abandon("the run was finished")
        self.trials.finish()
        self.keeping.finish()

    def abandon(self, reason: str) -> None:
        """End what is on trial without a verdict."""
        self.rounds.abandon(reason)
        self.trials.abandon(reason)

    def interrupt(self) -> None:
        """The run has gone on before arms that were interrupted could be taken up again."""
        for trying in (self.rounds, self.trials):
            if trying.is_due:
                trying.abandon("its arms were interrupted")

    def roll_back(self) -> None:
        """Go back to the last good state, on request. Arms that were interrupted are not gone on with.

        Raises:
            TransitionError: if arms are running, or there is nothing to go back to.
        """
        self._refuse_finished()
        if self._are_arms_running:
            raise TransitionError(ARMS_RUN)
        self.emergency.roll_back("asked for", "user")

    def rechunk(self, layer_id: str, num_seeds: int) -> None:
        """Deal a place's channels to another number of seeds.

        Raises:
            ConfigError: if there is no such place, it has fewer channels than that, or ``chunked_architecture`` is off.
            TransitionError: if a seed of it is not DORMANT, or arms are running.
        """
        self._refuse_in_arms()
        run, place = self._run, place_named(self._run.model, layer_id)
        if num_seeds != 1 and (why := run.flags.why_off("chunked_architecture")) is not None:
            raise ConfigError(f"{why} A layer has one seed then, not {num_seeds}.")
        place.rechunk(num_seeds)
        run.costs.restructured()
        self.recovery.renew(layer_id)
        if self.window is not None:
            self.rounds.runner.drop()  # arms elsewhere have begun with the old ones
            self.window.start["body"] = run.snapshots.renew(self.window.start["body"], layer_id)
        run.journal.write(Rechunked(step=run.step, layer_id=layer_id, num_seeds=num_seeds))

    def sized_for(self, layer_id: str, seed_id: SeedId, blueprint_id: str) -> dict[str, Any]:
        """Settings with which a blueprint is as large as the budgets allow; the smallest there is where none is.

        Raises:
            ConfigError: if place or blueprint do not exist, or do not fit together.
            TransitionError: if the place has no such seed.
        """
        run = self._run
        place_named(run.model, layer_id)
        run.seeds.check_address(layer_id, seed_id)
        seen = self.observer.observe_for(Command(layer_id, seed_id, State.GERMINATED, trial="live"))
        (place,) = seen.places
        blueprint = fitting(blueprint_id, place, seed_id)
        if blueprint is None:
            recipe = make_blueprint(blueprint_id, {})
            misfit = recipe.misfit(ports_at(place, seed_id, recipe))
            raise ConfigError(f"{blueprint_id!r} does not fit {layer_id!r}: {misfit}.")
        ports, config = ports_at(place, seed_id, blueprint), run.config
        largest = blueprint.sized(ports, budget_per_row(place, seen, config, "live"), parameter_room(seen, config))
        return (largest or blueprint).settings

    def state_dict(self) -> dict[str, Any]:
        """Everything under way."""
        now, trial = self.rounds.current, self.trials.current
        return {
            "round": None if now is None else now.to_dict(),
            "trial": None if trial is None else trial.to_dict(),
            "recovery": self.recovery.state_dict(None if trial is None or trial.window is None else trial.number),
            "keeping": self.keeping.state_dict(),
            "emergency": self.emergency.state_dict(),
            "observer": self.observer.state_dict(),
            "tracing": self._run.tracing.state_dict(),
            "costs": self._run.costs.state_dict(),
            "edits_batches": self._run.editing.is_known,
        }

    def built(self, state: dict[str, Any]) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes, from what :meth:`state_dict` gave; nothing is changed.

        Raises:
            CheckpointError: if a part of it does not fit the others.
        """
        now = None if state["round"] is None else Round.from_dict(state["round"], self._run.batch_store())
        trial = None if state["trial"] is None else LiveTrial.from_dict(state["trial"], self._run.batch_store())
        window = None if trial is None else trial.window
        for one in (now, window):
            if one is not None and isinstance(one.first_loss, Tensor) and one.first_loss.numel() != 1:
                raise CheckpointError("The checkpoint does not fit: the first loss of a window is not one number.")
        if window is None and any(one["body"] is None for one in state["recovery"]["fallbacks"]):
            raise CheckpointError("The checkpoint does not fit: a state to go back to has no body.")
        return {**state, "round": now, "trial": trial}

    def check(self, built: dict[str, Any], books: Books) -> None:
        """Refuse what does not fit the places, once these have taken on the checkpoint's topology.

        Raises:
            CheckpointError: naming what does not.
        """
        places = self._run.places
        fits: dict[str, bool] = {}
        for one in books.alive.values():
            fits[f"lifecycle {one.number}"] = one.layer_id in places and one.number in places[one.layer_id].arena.grafts
        for layer_id, flags in built["keeping"]["pending"].items():
            seeds = places[layer_id].state.num_seeds if layer_id in places else None
            fits[f"growth.keeping.pending[{layer_id!r}]"] = tuple(flags.shape) == (seeds,)
        for layer_id, weights in built["observer"]["weights"].items():
            fits[f"growth.observer.weights[{layer_id!r}]"] = self.observer.is_sample(layer_id, weights)
        pending = built["emergency"]["pending"]
        fits["growth.emergency.pending"] = pending is None or pending.numel() == 1
        for what, is_fit in fits.items():
            if not is_fit:
                raise CheckpointError(f"The checkpoint does not fit: {what} is not of the places that this run has.")

    def load_state_dict(self, built: dict[str, Any]) -> None:
        """Go on with what was under way, as :meth:`built` gave it."""
        self.trials.current = trial = built["trial"]
        window = None if trial is None else trial.window
        self.recovery.load_state_dict(built["recovery"], None if window is None else window.start["body"])
        self.keeping.load_state_dict(built["keeping"])
        self.emergency.load_state_dict(built["emergency"])
        self.observer.load_state_dict(built["observer"])
        self._run.tracing.load_state_dict(built["tracing"])
        self._run.costs.load_state_dict(built["costs"])
        self._run.editing.is_known = built["edits_batches"]
        self.rounds.go_on(built["round"])

    def _measure(self, train_loss: float) -> Measurement:
        run, select = self._run, self._run.judge.split.select
        now, books = run.judge.measure(), run.books
        books.train_losses.append(train_loss)
        books.select_losses.append(now.loss(select))
        if (metric := now.metric(select)) is not None:
            books.select_metrics.append(metric)
        run.journal.write(
            Epoch(
                epoch=run.epoch,
                step=run.step,
                lr=run.trainer.lr,
                train_loss=train_loss,
                val_loss=now.loss(select),
                val_metric=metric,
                run_flops=books.run_flops,
                arm_flops=books.arm_flops,
                judging_flops=books.judging_flops,
            )
        )
        return now

    def _keep_if_well(self, now: Measurement) -> None:
        config = self._run.config
        if not self.emergency.is_watching or not self.recovery.is_well(now):
            return
        self.emergency.all_is_well()
        self.observer.note_weights()
        if (config.trial, config.judge) != ("live", "ablation"):  # chosen where no copy of the run fits into memory
            self.recovery.remember_good(now)

    def _begin(self, seen: Observation, now: Measurement) -> None:
        """Ask the controller; then try what has waited longest, with all that waits for the same kind of trial."""
        run = self._run
        decided = self.policy.decide(seen) if run.ranks.rank == 0 else []
        if run.ranks.rank == 0 and (remarks := getattr(self.policy, "remarks", None)) is not None:
            for text in remarks():
                run.journal.write(Note(text=text))
        commands = run.ranks.same(decided, "a decision")
        answers_to = [(command, run.seeds.submit(command)) for command in commands]
        if run.debug is not None:
            run.debug.decided(self.policy, run.config, seen, answers_to)
        if run.ranks.rank == 0 and (answered := getattr(self.policy, "answered", None)) is not None:
            for _, answer in answers_to:
                answered(answer)
        self._cull_misfits()
        waiting = run.in_state(State.GERMINATED)
        if not waiting or self.keeping.is_removing:  # the controller may just have taken a graft out
            return
        candidates = [one for one in waiting if one.trial == waiting[0].trial]
        if waiting[0].trial == "live":
            self.trials.begin(candidates, now)
        else:
            self.rounds.begin(candidates)

    def _cull_misfits(self) -> None:
        """Take back what was germinated before the first step showed that it does not fit its place."""
        run = self._run
        for one in run.in_state(State.GERMINATED):
            place = run.places[one.layer_id]
            graft = place.arena.grafts[one.number]
            misfit = graft.blueprint.misfit(graft.ports._replace(layout=place.layout_for(graft.blueprint)))
            if misfit is not None:
                run.seeds.move(one, State.CULLED, f"{one.blueprint} does not fit: {misfit}")
            elif (reason := run.tracing.why_not(place)) is not None:
                run.seeds.move(one, State.CULLED, f"{one.layer_id!r} cannot grow: {reason}")

    def _veto(self, command: Command) -> str | None:
        run = self._run
        if (why := run.flags.why_off("extended_lifecycle")) is not None:
            return why
        for layer_id, _ in command.addresses:
            reason = run.tracing.why_not(run.places[layer_id]) if layer_id in run.places else None
            if reason is not None:
                return f"{layer_id!r} cannot grow: {reason}."
        return shield.veto(command, self.observer.observe_for(command), run.config)

    def _refuse_finished(self) -> None:
        if self._run.is_finished:
            raise TransitionError("The run is finished; its seeds sleep for good.")

    def _refuse_in_arms(self) -> None:
        self._refuse_finished()
        if self._run.arm is not None:
            raise TransitionError(ARMS_RUN)
