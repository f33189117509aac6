"""The seeds of a run: the one place where their states change, by commands, and lifecycles are opened and closed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Answer, Command, SeedId
from esper.contracts.errors import ConfigError, TransitionError, closest
from esper.contracts.lifecycle import LIVE, OUTCOMES, State
from esper.kasmina.gates import Measured, gate
from esper.kasmina.lifecycle import Birth, discard, is_finite, seed_range, transition
from esper.kasmina.place import Place
from esper.kasmina.strategies import strategy_kind
from esper.runtime.books import Lifecycle

if TYPE_CHECKING:
    from esper.runtime.run import Run

GATED = frozenset(
    {State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED}
)

ASKABLE = (State.GERMINATED, State.CULLED, State.CANCELLED)
"""What may be asked for from outside. The rest follows from what was measured, or from the passing of time."""


class VetoError(TransitionError):
    """The shield does not let a command pass."""


class Seeds:
    """Carries out commands.

    Args:
        run: the run that the seeds belong to.

    Attributes:
        veto: why the shield does not let a germination pass; None if it does.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self.veto: Callable[[Command], str | None] = lambda command: None

    def ask(self, command: Command) -> Answer:
        """Carry out a command from outside.

        Raises:
            TransitionError, ConfigError: if it is refused, which changes nothing.
        """
        with self._run.lock:
            return self._answer(command, {}, is_asked=True)

    def submit(self, command: Command) -> Answer:
        """Carry out a command from outside or refuse it; a refusal changes nothing. Never raises for a refusal."""
        try:
            return self.ask(command)
        except (TransitionError, ConfigError) as error:
            return Answer(False, str(error))

    def carry_out(self, command: Command, measured: Measured | None = None) -> Answer:
        """Carry out any command or refuse it.

        Args:
            command: what to do.
            measured: values for the gate of a promotion.
        """
        try:
            return self._answer(command, measured or {}, is_asked=False)
        except (TransitionError, ConfigError) as error:
            return Answer(False, str(error))

    def move(self, one: Lifecycle, target: State, reason: str, measured: Measured | None = None) -> Answer:
        """Command a lifecycle's seeds on Esper's own behalf."""
        return self.carry_out(Command(one.layer_id, one.seed_id, target, reason, who="session"), measured)

    def promote(self, one: Lifecycle, target: State, **measured: float | bool | None) -> Answer:
        """Move a lifecycle on if the gate lets it; the parameters' finiteness is always measured."""
        if one.number not in self._run.books.alive:  # a listener may have taken it back a moment ago
            return Answer(False, "It was taken back.")
        finite = is_finite(self._run.places[one.layer_id], one.number)
        return self.move(one, target, "gate passed", {"is_finite": finite, **measured})

    def discard(self, one: Lifecycle) -> None:
        """Take out the graft of a lifecycle that failed and close its record."""
        place = self._run.places[one.layer_id]
        if one.number in place.arena.grafts:
            discard(place, one.number)
        self._run.costs.restructured()
        self._close(one)

    def _answer(self, command: Command, measured: Measured, *, is_asked: bool) -> Answer:
        """The one way by which any command is carried out; what is refused is logged and raised."""
        try:
            if is_asked:
                self._check_askable(command)
            return self._apply(command, measured)
        except (TransitionError, ConfigError) as error:
            event = "veto" if isinstance(error, VetoError) else "refused"
            self._log_command(event, command, reason=str(error), asked=command.reason)
            raise

    def _check_askable(self, command: Command) -> None:
        if self._run.is_finished:
            raise TransitionError("The run is finished; its seeds sleep for good.")
        if not isinstance(command.target, State) or command.target not in ASKABLE:
            names = ", ".join(state.name for state in ASKABLE)
            raise TransitionError(f"{command.target!r} cannot be asked for. What can: {names}.")
        if self._run.arm is not None:
            raise TransitionError("The arms of a round are running. Ask again after this step.")

    def _apply(self, command: Command, measured: Measured) -> Answer:
        place = self._run.places.get(command.layer_id)
        if place is None:
            raise TransitionError(
                f"There is no place {command.layer_id!r}. {closest(command.layer_id, self._run.places)}"
            )
        target, one = command.target, self._addressed(place, command)
        if target in GATED:
            result = gate(target, measured, gate_z=self._run.config.gate_z, judge=self.judge_of(one))
            if not result.passed:
                raise TransitionError(f"The gate to {target.name} is shut: {result}.")
        birth = None
        if target is State.GERMINATED:
            if command.trial not in ("round", "live"):
                raise ConfigError(f"trial must be 'round' or 'live', not {command.trial!r}.")
            if command.blueprint is not None:  # an unknown one is refused, not vetoed
                make_blueprint(command.blueprint, command.settings)
                strategy_kind(command.strategy)
                if (reason := self.veto(command)) is not None:
                    raise VetoError(reason)
            birth = Birth(self._run.books.lifecycles_begun + 1, self._run.ramp_steps)
        old = State.DORMANT if one is None else one.state
        if target is State.DORMANT:
            old = State(int(place.state.lifecycle[slice(*seed_range(place, command.seed_id))][0]))
        version = transition(
            place,
            command,
            birth=birth,
            embargo_epochs=self._run.config.embargo_epochs,
            quarantine_epochs=self._run.config.quarantine_epochs,
        )
        self._run.costs.restructured()
        if birth is not None:
            one = self._open(place, command, birth)
        if one is not None and target is not State.GERMINATED:
            one.state, one.since_step = target, self._run.step
            if target in GATED:
                one.gates[target.name] = dict(measured)
            if target in OUTCOMES:
                one.reason = command.reason
        self._log_command(
            "transition",
            command,
            source=old.name,
            version=version,
            lifecycle=one.number if one else None,
            gates=dict(measured),
        )
        if one is not None and target in OUTCOMES and (target is State.FOSSILIZED or old not in LIVE):
            self._close(one)
        return Answer(True, version=version)

    def judge_of(self, one: Lifecycle | None) -> Literal["twin", "ablation"]:
        """What the grow gate of a lifecycle believes."""
        return self._run.config.judge if one is not None and one.trial == "live" else "twin"

    def check_address(self, layer_id: str, seed_id: SeedId) -> None:
        """Raise what a command to such seeds would be refused with."""
        seed_range(self._run.places[layer_id], seed_id)

    def _addressed(self, place: Place, command: Command) -> Lifecycle | None:
        seeds = slice(*seed_range(place, command.seed_id))
        number = int(place.state.lifecycle_id[seeds].max())
        return self._run.books.alive.get(number)

    def _open(self, place: Place, command: Command, birth: Birth) -> Lifecycle:
        graft = place.arena.grafts[birth.lifecycle]
        self._run.books.lifecycles_begun += 1
        one = Lifecycle(
            number=birth.lifecycle,
            layer_id=command.layer_id,
            seed_id=command.seed_id,
            blueprint=graft.blueprint.id,
            settings=graft.blueprint.settings,
            strategy=command.strategy,
            trial=command.trial,
            parameters=graft.num_parameters,
            born_step=self._run.step,
            state=State.GERMINATED,
            since_step=self._run.step,
        )
        self._run.books.alive[one.number] = one
        return one

    def _close(self, one: Lifecycle) -> None:
        self._run.books.alive.pop(one.number, None)
        report = one.report(self._run.step)
        self._run.books.reports.append(report)
        self._run.journal.write("field_report", step=self._run.step, **report.to_dict())

    def _log_command(self, event: str, command: Command, **fields: Any) -> None:
        self._run.journal.write(
            event,
            **{
                "step": self._run.step,
                "epoch": self._run.epoch,
                "arm": self._run.arm,
                "layer_id": command.layer_id,
                "seed_id": command.seed_id,
                "target": getattr(command.target, "name", str(command.target)),
                "who": command.who,
                "reason": command.reason,
                "run_flops": self._run.books.run_flops,
                "arm_flops": self._run.books.arm_flops,
                "judging_flops": self._run.books.judging_flops,
                **fields,
            },
        )
