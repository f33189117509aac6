"""The seeds of a run: the one place where their states change, by commands, and lifecycles are opened and closed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Answer, Command, SeedId, SeedIds
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.events import FieldReportFiled, Refused, Transition, Veto
from esper.contracts.flags import Flags
from esper.contracts.lifecycle import LIVE, OUTCOMES, State
from esper.kasmina.grafts.strategies import strategy_kind
from esper.kasmina.places.lifecycle import Birth, Moved, are_finite, check_addresses, discard, move, seed_range
from esper.kasmina.places.place import Place
from esper.runtime.commands.undisturbed import undisturbed
from esper.runtime.judging.gates import GateResult, Measured, gate
from esper.runtime.record.books import Books, Lifecycle
from esper.runtime.record.journal import Journal

GATED = frozenset(
    {State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED}
)

ASKABLE = (State.GERMINATED, State.CULLED, State.CANCELLED)
"""What may be asked for from outside. The rest follows from what was measured, or from the passing of time."""


class Situation(Protocol):
    """Where a run stands; in an arm, where that does."""

    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def arm(self) -> str | None: ...
    @property
    def is_finished(self) -> bool: ...
    @property
    def books(self) -> Books: ...
    @property
    def flags(self) -> Flags: ...


class VetoError(TransitionError):
    """The shield does not let a command pass."""


class Seeds:
    """Carries out commands.

    Args:
        places: of the model, by name.
        config: how candidates are tried, and for how long seeds rest.
        journal: where transitions are told.
        now: where the run stands.
        restructured: called when something has changed what work costs.
        ramp_steps: in which alpha rises or falls.

    Attributes:
        veto: why the shield does not let a germination pass; None if it does.
        judged: is shown what every gate was shown, and what it said.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        config: GrowthConfig,
        journal: Journal,
        now: Situation,
        restructured: Callable[[], None],
        ramp_steps: int,
    ) -> None:
        self._places, self._config, self._journal, self._now = places, config, journal, now
        self._restructured, self._ramp_steps = restructured, ramp_steps
        self.veto: Callable[[Command], str | None] = lambda command: None
        self.judged: Callable[[Lifecycle | None, State, Measured, GateResult], object] = lambda *shown: None

    def ask(self, command: Command) -> Answer:
        """Carry out a command from outside.

        Raises:
            TransitionError, ConfigError: if it is refused, which changes nothing.
        """
        return self._answer(command, {}, is_asked=True)

    def submit(self, command: Command) -> Answer:
        """Carry out a command from outside or refuse it; a refusal changes nothing. Never raises for a refusal."""
        try:
            return self.ask(command)
        except (TransitionError, ConfigError) as error:
            return Answer(False, str(error), command_id=command.id)

    def submit_once(self, command_id: str, request: Callable[[], Answer]) -> Answer:
        """Do what a command asks, unless one of this id was answered before: then give that answer again.

        A refusal is an answer too, also one that the request raises. While arms run nothing is remembered: what is
        refused then may be asked again.
        """
        answers = self._now.books.answers
        if command_id in answers:
            return answers[command_id]
        try:
            answer = request()
        except (TransitionError, ConfigError) as error:
            answer = Answer(False, str(error), command_id=command_id)
        if self._now.arm is None:
            answers[command_id] = answer
        return answer

    def carry_out(self, command: Command, measured: Mapping[int, Measured] | None = None) -> Answer:
        """Carry out any command or refuse it.

        Args:
            command: what to do.
            measured: values for the gates of a promotion, by the number of the lifecycle.
        """
        try:
            return self._answer(command, measured or {}, is_asked=False)
        except (TransitionError, ConfigError) as error:
            return Answer(False, str(error), command_id=command.id)

    def refuse(self, command: Command, reason: str) -> Answer:
        """Refuse a command that came where nothing may change, and write it down."""
        self._log_refusal(Refused, command, reason)
        return Answer(False, reason, command_id=command.id)

    def move(self, one: Lifecycle, target: State, reason: str) -> Answer:
        """Command a lifecycle's seeds on Esper's own behalf."""
        return self.carry_out(_command([one], target, reason))

    def move_all(self, lifecycles: Sequence[Lifecycle], target: State, reason: str) -> None:
        """The same of several, or none, by one command."""
        if lifecycles:
            self.carry_out(_command(lifecycles, target, reason))

    def promote(self, one: Lifecycle, target: State, **measured: float | bool | None) -> Answer:
        """Move a lifecycle on if the gate lets it; the parameters' finiteness is always measured."""
        return self.promote_all([one], target, {one.number: measured})[0]

    def promote_all(
        self, lifecycles: Sequence[Lifecycle], target: State, measured: Mapping[int, Measured]
    ) -> list[Answer]:
        """Move those lifecycles on whose gates let them, by one command; each gets an answer.

        Args:
            lifecycles: whom; their parameters' finiteness is always measured.
            target: where to.
            measured: what else was, by the number of the lifecycle.
        """
        finite = self._finite(lifecycles)
        values = {one.number: {"is_finite": finite[one.number], **measured.get(one.number, {})} for one in lifecycles}
        told: dict[int, Answer] = {}
        passing = []
        for one in lifecycles:
            if self._gate(one, target, values[one.number]).passed:
                passing.append(one)
            else:
                told[one.number] = self.carry_out(_command([one], target, "gate passed"), values)
        if passing:
            answer = self.carry_out(_command(passing, target, "gate passed"), values)
            told |= dict.fromkeys((one.number for one in passing), answer)
        return [told[one.number] for one in lifecycles]

    def discard(self, *lifecycles: Lifecycle) -> None:
        """Take out the grafts of lifecycles that failed and close their records."""
        with undisturbed():
            for layer_id, ones in _by_place(lifecycles).items():
                place = self._places[layer_id]
                if there := [one.number for one in ones if one.number in place.arena.grafts]:
                    discard(place, *there)
            self._restructured()
            for one in lifecycles:
                self._close(one)

    def _finite(self, lifecycles: Sequence[Lifecycle]) -> dict[int, bool]:
        """Whether all parameters of each graft are finite; one look at every place."""
        found: dict[int, bool] = {}
        for layer_id, ones in _by_place(lifecycles).items():
            names = [one.number for one in ones]
            found |= zip(names, are_finite(self._places[layer_id], names), strict=True)
        return found

    def _gate(self, one: Lifecycle | None, target: State, measured: Measured) -> GateResult:
        result = gate(target, measured, gate_z=self._config.gate_z, judge=self.judge_of(one))
        self.judged(one, target, measured, result)
        return result

    def _answer(self, command: Command, measured: Mapping[int, Measured], *, is_asked: bool) -> Answer:
        """The one way by which any command is carried out; what is refused is logged and raised."""
        try:
            if is_asked:
                self._check_askable(command)
            return self._apply(command, measured)
        except (TransitionError, ConfigError) as error:
            kind = Veto if isinstance(error, VetoError) else Refused
            self._log_refusal(kind, command, str(error))
            raise

    def _check_askable(self, command: Command) -> None:
        if self._now.is_finished:
            raise TransitionError("The run is finished; its seeds sleep for good.")
        if not isinstance(command.target, State) or command.target not in ASKABLE:
            names = ", ".join(state.name for state in ASKABLE)
            raise TransitionError(f"{command.target!r} cannot be asked for. What can: {names}.")
        if self._now.arm is not None:
            raise TransitionError("The arms of a round are running. Ask again after this step.")

    def _apply(self, command: Command, measured: Mapping[int, Measured]) -> Answer:
        now, target = self._now, command.target
        check_addresses(self._places, command)
        if target in GATED:
            for one in self._addressed(command):
                result = self._gate(one, target, {} if one is None else measured.get(one.number, {}))
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
                if not now.flags.is_on("grafting_strategies"):
                    command = replace(command, strategy="fixed_ramp")
            birth = Birth(now.books.lifecycles_begun + 1, self._ramp_steps)
        with undisturbed():
            all_moved = move(self._places, command, birth, self._config.embargo_epochs, self._config.quarantine_epochs)
            self._restructured()
            for moved in all_moved:
                self._book(moved, command, measured)
        versions = tuple(moved.version for moved in all_moved)
        only = versions[0] if len(versions) == 1 else None
        return Answer(True, version=only, versions=versions, command_id=command.id)

    def _book(self, moved: Moved, command: Command, measured: Mapping[int, Measured]) -> None:
        """Let the books and the log say what the seeds' states do; where that ends a lifecycle, close its record."""
        now, target = self._now, command.target
        if target is State.GERMINATED:
            self._open(moved, command)
        one, gates = now.books.alive.get(moved.lifecycle), dict(measured.get(moved.lifecycle, {}))
        if one is not None and target is not State.GERMINATED:
            one.state, one.since_step = target, now.step
            if target in GATED:
                one.gates[target.name] = gates
            if target in OUTCOMES:
                one.reason = command.reason
        self._log_command(
            Transition,
            command,
            layer_id=moved.layer_id,
            seed_id=moved.seed_id,
            source=moved.source.name,
            version=moved.version,
            lifecycle=None if one is None else one.number,
            gates=dict(gates),
        )
        if one is not None and target in OUTCOMES and (target is State.FOSSILIZED or moved.source not in LIVE):
            self._close(one)

    def judge_of(self, one: Lifecycle | None) -> Literal["twin", "ablation"]:
        """What the grow gate of a lifecycle believes."""
        return self._config.judge if one is not None and one.trial == "live" else "twin"

    def check_address(self, layer_id: str, seed_id: SeedId) -> None:
        """Raise what a command to such seeds would be refused with."""
        seed_range(self._places[layer_id], seed_id)

    def _addressed(self, command: Command) -> list[Lifecycle | None]:
        """The lifecycle that is under way at each address of a command."""
        places, alive = self._places, self._now.books.alive
        numbers = {layer_id: places[layer_id].state.lifecycle_id.tolist() for layer_id in dict(command.addresses)}
        spans = [(layer_id, seed_range(places[layer_id], one)) for layer_id, one in command.addresses]
        return [alive.get(max(numbers[layer_id][slice(*span)])) for layer_id, span in spans]

    def _open(self, moved: Moved, command: Command) -> None:
        graft = self._places[moved.layer_id].arena.grafts[moved.lifecycle]
        self._now.books.lifecycles_begun += 1
        self._now.books.alive[moved.lifecycle] = Lifecycle(
            number=moved.lifecycle,
            layer_id=moved.layer_id,
            seed_id=moved.seed_id,
            blueprint=graft.blueprint.id,
            settings=graft.blueprint.settings,
            strategy=command.strategy,
            trial=command.trial,
            parameters=graft.num_parameters,
            born_step=self._now.step,
            state=State.GERMINATED,
            since_step=self._now.step,
        )

    def _close(self, one: Lifecycle) -> None:
        self._now.books.alive.pop(one.number, None)
        report = one.report(self._now.step)
        self._now.books.reports.append(report)
        self._journal.write(FieldReportFiled(step=self._now.step, **report.to_dict()))

    def _log_refusal(self, kind: type[Refused], command: Command, reason: str) -> None:
        also = {"also": dict(command.also)} if command.also else {}
        self._log_command(kind, command, reason=reason, asked=command.reason, **also)

    def _log_command(self, kind: type[Transition | Refused], command: Command, **fields: Any) -> None:
        now = self._now
        told: dict[str, Any] = {
            "step": now.step,
            "epoch": now.epoch,
            "arm": now.arm,
            "layer_id": command.layer_id,
            "seed_id": command.seed_id,
            "target": getattr(command.target, "name", str(command.target)),
            "who": command.who,
            "reason": command.reason,
            "run_flops": now.books.run_flops,
            "arm_flops": now.books.arm_flops,
            "judging_flops": now.books.judging_flops,
        }
        self._journal.write(kind(**told | fields))


def _by_place(lifecycles: Iterable[Lifecycle]) -> dict[str, list[Lifecycle]]:
    found: dict[str, list[Lifecycle]] = {}
    for one in lifecycles:
        found.setdefault(one.layer_id, []).append(one)
    return found


def _command(lifecycles: Sequence[Lifecycle], target: State, reason: str) -> Command:
    """To all seeds of lifecycles, on Esper's own behalf."""
    named: dict[str, SeedIds] = {
        layer_id: ones[0].seed_id if len(ones) == 1 else tuple(one.seed_id for one in ones if one.seed_id != "all")
        for layer_id, ones in _by_place(lifecycles).items()
    }
    (layer_id, seed_id), *others = named.items()
    return Command(layer_id, seed_id, target, reason, who="session", also=dict(others))
