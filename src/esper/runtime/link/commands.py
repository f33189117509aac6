"""Carries out commands that come over a bus: each once, whatever dies in between.

The training state is the authority. What was answered stands in the run's books and travels in its checkpoints; a
message is acked only once a checkpoint knows its answer. So a command that comes again, to the same process or to the
one that went on from the checkpoint, is answered from the books or carried out, never both and never neither.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from esper.contracts.commands import Answer, Command, Handled
from esper.contracts.commands import SeedIds as CommandSeedIds
from esper.contracts.errors import BusError, BusUnavailableError, EsperError
from esper.contracts.lifecycle import State
from esper.oona.bus import Bus, Delivery, Subscription, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import Body, CommandAck, GerminationCommand, RemovalCommand, RollbackCommand, SeedIds
from esper.runtime.link.names import group_of
from esper.runtime.link.publisher import TelemetryPublisher
from esper.runtime.session import Session

_LOOK_S = 0.02
_WAIT_S = 1.0
_REDELIVER_AFTER_S = 30.0

Asked = GerminationCommand | RemovalCommand | RollbackCommand


@dataclass(slots=True)
class HandlerStatistics:
    """Counts of a handler.

    Args:
        carried_out: commands that were accepted.
        refused: commands that were refused.
        repeated: commands that came again.
        unreadable: messages that went to the dead letters.
    """

    carried_out: int = 0
    refused: int = 0
    repeated: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class _Waiting:
    """A command that was not carried out yet, or whose message was not acked."""

    asked: Asked
    delivery: Delivery
    received: float = field(default_factory=time.time)
    is_answered: bool = field(default=False)


class CommandDesk:
    """Carries out the commands to one run that a bus brings, in the thread of whoever calls it.

    Args:
        codec: reads them.
        run_id: of the run: the name of its group, and the key of its commands.
        session: carries them out, where nothing is half done.
        put: called with each answer, which must not be lost.
        on_handled: called with every command that was answered for the first time.

    Attributes:
        statistics: what became of them.
    """

    def __init__(
        self,
        codec: Codec,
        run_id: str,
        session: Session,
        put: Callable[[Body], None],
        on_handled: Callable[[Handled], None] = lambda handled: None,
    ) -> None:
        self._codec, self._run_id, self._session = codec, run_id, session
        self._put, self._on_handled = put, on_handled
        self.statistics = HandlerStatistics()
        self._waiting: dict[str, _Waiting] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether a command was not carried out yet, or its message not acked."""
        return bool(self._waiting)

    def join(self, bus: Bus) -> Subscription:
        """Hear the commands on a bus."""
        return bus.subscribe(
            GerminationCommand.topic,
            group_of(self._run_id),
            "run",
            start="oldest",
            redeliver_after_s=_REDELIVER_AFTER_S,
        )

    def handle(self, subscription: Subscription, timeout_s: float) -> None:
        """Take what has come, carry out what may be now, and let go of what was answered for good.

        Raises:
            BusUnavailableError: if the broker does not answer; nothing is lost by that.
        """
        self._take(subscription, timeout_s)
        self._carry_out()
        self._let_go(subscription)

    def _take(self, subscription: Subscription, timeout_s: float) -> None:
        for delivery in subscription.receive(timeout_s=timeout_s):
            if delivery.message.key != self._run_id:  # to another run
                subscription.ack([delivery])
                continue
            try:
                body = self._codec.decode(delivery.message)
                if not isinstance(body, Asked):
                    raise UnreadableError(f"{type(body).__name__} is no command")
            except UnreadableError as error:
                subscription.reject(delivery, str(error))
                self.statistics.unreadable += 1
                continue
            known = self._waiting.get(body.command_id)
            if known is not None:
                known.delivery = delivery
                self.statistics.repeated += 1
            else:
                self._waiting[body.command_id] = _Waiting(body, delivery)

    def _carry_out(self) -> None:
        for one in self._waiting.values():
            if one.is_answered:
                continue
            if self._session.position.arm is not None:  # it would be refused, and that written down, at every step
                return
            is_new = self._session.answer_to(one.asked.command_id) is None
            try:
                answer = self._ask(one.asked)
            except EsperError as error:  # another session has taken over, or we asked in the middle of a step
                answer = Answer(False, str(error), command_id=one.asked.command_id)
            if self._session.answer_to(one.asked.command_id) is None and not self._session.is_finished:
                return  # arms have just begun: it keeps its turn
            one.is_answered = True
            if not is_new:
                self.statistics.repeated += 1
            elif answer.accepted:
                self.statistics.carried_out += 1
            else:
                self.statistics.refused += 1
            self._put(self._ack(one.asked, answer))
            if is_new:
                self._on_handled(_handled(one, answer))

    def _ask(self, asked: Asked) -> Answer:
        if isinstance(asked, RollbackCommand):
            return self._session.rollback(asked.command_id)
        return self._session.submit_once(command_of(asked))

    def _ack(self, asked: Asked, answer: Answer) -> CommandAck:
        return CommandAck(
            run_id=self._run_id,
            command_id=asked.command_id,
            accepted=answer.accepted,
            reason=answer.reason,
            versions=list(answer.versions),
            step=self._session.step_count,
        )

    def _let_go(self, subscription: Subscription) -> None:
        """Ack the messages whose answers outlive this process."""
        done = [
            id_
            for id_, one in self._waiting.items()
            if one.is_answered
            and (self._session.is_finished or self._session.answer_to(id_, is_durable=True) is not None)
        ]
        if done:
            subscription.ack([self._waiting[id_].delivery for id_ in done])
            for id_ in done:
                del self._waiting[id_]


class ControlCommandHandler:
    """Receives the commands to one run, in a thread of its own.

    Args:
        connect: gives the bus that they come from, in this object's thread; called again where its broker is away.
        codec: reads them.
        run_id: of the run: the name of its group, and the key of its commands.
        session: carries them out, where nothing is half done.
        publisher: tells the answers.
        tell: called, in this object's thread, with a sentence if the bus will never serve us.
        on_handled: likewise with every command that was answered for the first time.
    """

    def __init__(
        self,
        connect: Callable[[], Bus],
        codec: Codec,
        run_id: str,
        session: Session,
        publisher: TelemetryPublisher,
        tell: Callable[[str], None] = lambda text: None,
        on_handled: Callable[[Handled], None] = lambda handled: None,
    ) -> None:
        self._connect, self._tell = connect, tell
        self._bus: Bus | None = None
        self._desk = CommandDesk(codec, run_id, session, publisher.put, on_handled)
        self._subscription: Subscription | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="esper-commands", daemon=True)
        self._thread.start()

    @property
    def statistics(self) -> HandlerStatistics:
        """What became of the commands."""
        return self._desk.statistics

    def close(self, within_s: float = 10.0) -> None:
        """Take no more commands, and let go of those that were answered for good."""
        self._is_closing.set()
        self._thread.join(within_s)

    def _work(self) -> None:
        try:
            self._handle_until_closed()
        finally:
            if self._bus is not None:
                self._bus.close()

    def _joined(self) -> Subscription:
        if self._subscription is None:
            self._bus = self._bus or self._connect()
            self._subscription = self._desk.join(self._bus)
        return self._subscription

    def _handle_until_closed(self) -> None:
        while True:
            is_last = self._is_closing.is_set()
            try:
                self._desk.handle(self._joined(), 0.0 if is_last or self._desk.is_waiting else _WAIT_S)
            except BusUnavailableError:
                self._is_closing.wait(_WAIT_S)
            except BusError as error:  # it will never serve us
                self._tell(f"No commands are heard any more: {error}")
                return
            if is_last:
                return
            if self._desk.is_waiting:
                self._is_closing.wait(_LOOK_S)


def _handled(one: _Waiting, answer: Answer) -> Handled:
    return Handled(
        command_id=one.asked.command_id,
        who=one.asked.who,
        accepted=answer.accepted,
        reason=answer.reason,
        received=one.received,
        answered=time.time(),
        headers=one.delivery.message.headers,
    )


def command_of(asked: GerminationCommand | RemovalCommand) -> Command:
    """The command that a message asks for."""
    version = tuple(asked.version) if isinstance(asked.version, list) else asked.version
    seed_ids, who, reason = _seeds(asked.seed_ids), asked.who, asked.reason
    if isinstance(asked, RemovalCommand):
        target = State[asked.target]
        return Command(asked.layer_id, seed_ids, target, reason, who=who, version=version, id=asked.command_id)
    return Command(
        asked.layer_id,
        seed_ids,
        State.GERMINATED,
        reason,
        who=who,
        version=version,
        blueprint=asked.blueprint,
        settings=dict(asked.settings),
        strategy=asked.strategy,
        trial=asked.trial,
        also={layer_id: _seeds(seeds) for layer_id, seeds in asked.also.items()},
        id=asked.command_id,
    )


def _seeds(seed_ids: SeedIds) -> CommandSeedIds:
    return tuple(seed_ids) if isinstance(seed_ids, list) else seed_ids
