"""A policy that asks a controller elsewhere, over a bus."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from esper.contracts.commands import Answer, Command, Handled
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import BusError
from esper.contracts.reports import Observation
from esper.oona.bus import Bus, Subscription, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import Decision, ObservationReport
from esper.runtime.link.names import group_of
from esper.tamiyo.heuristic import Policy


@dataclass(slots=True)
class ControllerStatistics:
    """How a controller elsewhere has served a run.

    Args:
        decisions: that came in time.
        decisions_missed: that did not.
        controller_seen: when the last one came, in seconds since 1970; 0 if none has.
    """

    decisions: int = 0
    decisions_missed: int = 0
    controller_seen: float = 0.0


class RemotePolicy:
    """Sends what the run shows at a boundary and waits for the decision, for so long; then the run goes on without.

    It carries the state of the policy elsewhere, which goes out with each question and comes back with the decision:
    the controller may be started anew at any time, and a run that goes on from a checkpoint asks as it would have.

    Args:
        connect: gives the bus over which to ask; called again where its broker is away.
        codec: writes and reads the messages.
        run_id: of the run.
        config: how the run may grow.
        timeout_s: how long to wait.
        otherwise: who decides where no decision came in time; None decides nothing then.
        tell: called with a sentence where none came.
        headers: that go along with every question.
        on_handled: called with every command of a decision once it is answered.

    Attributes:
        statistics: how it was served.
    """

    def __init__(
        self,
        connect: Callable[[], Bus],
        codec: Codec,
        run_id: str,
        config: GrowthConfig,
        *,
        timeout_s: float = 10.0,
        otherwise: Policy | None = None,
        tell: Callable[[str], None] = lambda text: None,
        headers: Mapping[str, str] | None = None,
        on_handled: Callable[[Handled], None] = lambda handled: None,
    ) -> None:
        self._headers, self._on_handled = headers, on_handled
        self._decided: dict[str, tuple[Command, float, Mapping[str, str]]] = {}
        self._connect, self._codec, self._run_id, self._config = connect, codec, run_id, config
        self._bus: Bus | None = None
        self._timeout_s, self._otherwise, self._tell = timeout_s, otherwise, tell
        self._subscription: Subscription | None = None
        self.statistics = ControllerStatistics()
        self._number = 0
        self._answers: list[Answer] = []
        self._state: Any = None
        self._remarks: list[str] = []
        self._is_missing = False

    def decide(self, observation: Observation) -> list[Command]:
        """The commands of the decision that came; else those of the policy that stands in."""
        self._number += 1
        question = ObservationReport(
            run_id=self._run_id,
            number=self._number,
            config=self._config,
            observation=observation,
            answers=self._answers,
            state=self._state,
        )
        try:
            decision = self._asked(question)
        except BusError as error:
            decision = None
            self._say(f"The controller cannot be asked: {error}")
        self._answers = []
        if decision is None:
            self._decided.clear()
        else:
            self._state, self._is_missing = decision.state, False
            self._remarks += decision.remarks
            self.statistics.decisions += 1
            self.statistics.controller_seen = round(time.time(), 3)
            return list(decision.commands)
        self.statistics.decisions_missed += 1
        return [] if self._otherwise is None else self._otherwise.decide(observation)

    def _asked(self, question: ObservationReport) -> Decision | None:
        deadline = time.monotonic() + self._timeout_s
        self._bus = self._bus or self._connect()
        if self._subscription is None:
            self._subscription = self._bus.subscribe(
                Decision.topic, group_of(self._run_id), "policy", start="new", redeliver_after_s=self._timeout_s + 1.0
            )
        self._bus.publish(self._codec.encode(question, self._run_id, self._headers))
        while (left_s := deadline - time.monotonic()) > 0:
            found = None
            for delivery in self._subscription.receive(timeout_s=min(left_s, 1.0)):
                if delivery.message.key == self._run_id:
                    try:
                        body = self._codec.decode(delivery.message)
                    except UnreadableError as error:
                        self._subscription.reject(delivery, str(error))
                        continue
                    if isinstance(body, Decision) and body.number == question.number:
                        found = body
                        came = time.time(), delivery.message.headers
                        self._decided = {one.id: (one, *came) for one in body.commands}
                self._subscription.ack([delivery])
            if found is not None:
                return found
        self._say(f"No decision came within {self._timeout_s:g} s at step {question.observation.step}.")
        return None

    def _say(self, text: str) -> None:
        """Once until a decision comes."""
        if not self._is_missing:
            self._tell(text)
        self._is_missing = True

    def remarks(self) -> list[str]:
        """What the policy elsewhere has to tell, and nobody was told yet."""
        told, self._remarks = self._remarks, []
        return told

    def close(self) -> None:
        """Let the connection go."""
        if self._bus is not None:
            self._bus.close()
            self._bus = self._subscription = None

    def answered(self, answer: Answer) -> None:
        """Goes out with the next question."""
        self._answers.append(answer)
        if (asked := self._decided.pop(answer.command_id, None)) is None:
            return
        command, received, headers = asked
        self._on_handled(
            Handled(
                command_id=command.id,
                who=command.who,
                accepted=answer.accepted,
                reason=answer.reason,
                received=received,
                answered=time.time(),
                headers=headers,
                is_decision=True,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next question will say."""
        answers = [asdict(one) for one in self._answers]
        return {"number": self._number, "answers": answers, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._number, self._state = state["number"], state["state"]
        self._answers = [Answer(**one | {"versions": tuple(one["versions"])}) for one in state["answers"]]
