"""The controller as a process of its own: decides for any number of runs, over a bus.

It remembers nothing between two questions: what its policy remembers comes with each question and goes back with the
decision. So it may die and be started anew at any time, and several may share the work.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from esper.contracts.commands import Command
from esper.contracts.errors import BusUnavailableError, EsperError
from esper.oona.bus import Bus, Delivery, Subscription, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import Decision, ObservationReport
from esper.tamiyo import shield
from esper.tamiyo.policies import make_policy

Around = Callable[[ObservationReport, Mapping[str, str]], AbstractContextManager[Mapping[str, str]]]
"""Gets a question and the headers of its message, and gives what is entered while it is decided: that gives the headers
of the decision's."""

_GROUP = "tamiyo"
_WAIT_S = 1.0


class Controller:
    """Answers the questions of runs.

    Args:
        bus: over which they ask.
        codec: reads questions and writes decisions.
        policy: name of who decides.
        consumer: a name of this process's own.
        redeliver_after_s: after how long another one answers what this one took and did not.
        tell: called with a sentence about each decision, and what went wrong.
        around: what is entered around each decision, see :data:`Around`.
        beat: called at every turn, with whether the bus has answered.
    """

    def __init__(
        self,
        bus: Bus,
        codec: Codec,
        policy: str,
        consumer: str,
        *,
        redeliver_after_s: float = 5.0,
        tell: Callable[[str], None] = lambda text: None,
        around: Around = lambda question, headers: nullcontext({}),
        beat: Callable[[bool], None] = lambda hears: None,
    ) -> None:
        self._around, self._beat = around, beat
        self._bus, self._codec, self._policy, self._consumer = bus, codec, policy, consumer
        self._redeliver_after_s, self._tell = redeliver_after_s, tell

    def serve(self, ending: threading.Event) -> None:
        """Answer until ``ending`` is set; a broker that does not answer is asked again and again.

        Raises:
            BusError: if the bus will never serve us.
        """
        subscription: Subscription | None = None
        while not ending.is_set():
            try:
                if subscription is None:
                    subscription = self._bus.subscribe(
                        ObservationReport.topic,
                        _GROUP,
                        self._consumer,
                        start="oldest",
                        redeliver_after_s=self._redeliver_after_s,
                    )
                self.answer_next(subscription, _WAIT_S)
                self._beat(True)
            except BusUnavailableError as error:
                self._beat(False)
                self._tell(str(error))
                ending.wait(_WAIT_S)

    def answer_next(self, subscription: Subscription, timeout_s: float) -> int:
        """Answer the questions that wait.

        Returns:
            How many.
        """
        deliveries = subscription.receive(timeout_s=timeout_s)
        for delivery in deliveries:
            try:
                question = self._codec.decode(delivery.message)
                if not isinstance(question, ObservationReport):
                    raise UnreadableError(f"{type(question).__name__} is no question")
            except UnreadableError as error:
                self._refuse(subscription, delivery, error)
                continue
            with self._around(question, delivery.message.headers) as further:
                try:
                    decision = self.decide(question)
                except EsperError as error:
                    self._refuse(subscription, delivery, error)
                    continue
                self._bus.publish(self._codec.encode(decision, question.run_id, further))
                subscription.ack([delivery])
                self._tell(f"{question.run_id}, step {question.observation.step}: {_told(decision)}")
        return len(deliveries)

    def _refuse(self, subscription: Subscription, delivery: Delivery, error: EsperError) -> None:
        subscription.reject(delivery, str(error))
        self._tell(f"A question was refused: {error}")

    def decide(self, question: ObservationReport) -> Decision:
        """The decision about one question; what the shield vetoes is left out.

        Raises:
            EsperError: if the policy cannot be built, or cannot take its state.
        """
        policy: Any = make_policy(self._policy, question.config)
        remembers = hasattr(policy, "load_state_dict")
        if remembers and question.state is not None:
            policy.load_state_dict(question.state)
        if (answered := getattr(policy, "answered", None)) is not None:
            for answer in question.answers:
                answered(answer)
        commands = [one for one in policy.decide(question.observation) if not self._is_vetoed(one, question)]
        remarks = policy.remarks() if hasattr(policy, "remarks") else []
        for text in remarks:
            self._tell(f"{question.run_id}: {text}")
        state = policy.state_dict() if remembers else None
        return Decision(
            run_id=question.run_id,
            number=question.number,
            policy=self._policy,
            commands=commands,
            state=state,
            remarks=remarks,
        )

    def _is_vetoed(self, command: Command, question: ObservationReport) -> bool:
        veto = shield.veto(command, question.observation, question.config)
        if veto is not None:
            self._tell(f"{question.run_id}: the shield has a veto: {veto}")
        return veto is not None


def _told(decision: Decision) -> str:
    if not decision.commands:
        return "nothing"
    return ", ".join(f"{one.target.name} {one.blueprint or ''} at {one.layer_id!r}" for one in decision.commands)
