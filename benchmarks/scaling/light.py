"""Runs that train nothing and otherwise behave on a bus as real ones do.

What is real: the messages and how a line of the log becomes some, the codec, and :class:`CommandDesk`, which carries
out each command once. What is made up: the numbers that seeds sense, the state that commands change (a list of what was
carried out), and checkpoints (a copy of it).
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import BusUnavailableError
from esper.contracts.reports import Observation, PlaceReport, SeedReport
from esper.oona.bus import Bus, Subscription
from esper.oona.codec import Codec
from esper.oona.messages import Body, Decision, ObservationReport, RunHeartbeat
from esper.runtime.link.commands import CommandDesk
from esper.runtime.link.lines import COLUMNS, bodies
from esper.runtime.link.names import group_of
from esper.runtime.session import Session

CONFIG = GrowthConfig()
CHANNELS_OF_A_SEED = 12


def line(layers: int, seeds: int, step: int, chance: random.Random) -> dict[str, Any]:
    """A line of telemetry as a run's log has it: four columns of random numbers for each layer."""
    places = {
        f"blocks.{number}.mlp": {name: [chance.random() for _ in range(seeds)] for name in COLUMNS} | {"awake": {}}
        for number in range(layers)
    }
    return {"event": "telemetry", "step": step, "epoch": step, "places": places}


def observation(layers: int, seeds: int, step: int, chance: random.Random) -> Observation:
    """What a run shows whose loss has stalled, all of whose seeds sleep."""

    def column() -> list[float]:
        return [chance.random() for _ in range(seeds)]

    channels = seeds * CHANNELS_OF_A_SEED
    places = [
        PlaceReport(
            layer_id=f"blocks.{number}.mlp",
            kind="layer",
            states=[0] * seeds,
            is_under_embargo=False,
            inputs=channels,
            outputs=channels,
            bounds=range(0, channels + 1, CHANNELS_OF_A_SEED),
            host_parameters=channels * channels,
            rows=64,
            seeds=SeedReport(column(), column(), column(), column()),
            gradient_noise=0.1,
            drift=0.01,
            versions=[0] * seeds,
        )
        for number in range(layers)
    ]
    losses = [1.0 + 1e-4 * chance.random() for _ in range(20)]
    return Observation(
        step=step,
        planned_steps=10_000,
        epoch=20,
        train_losses=losses,
        select_losses=losses,
        places=places,
        rounds_done=0,
        host_parameters=layers * channels * channels,
        grown_parameters=0,
        host_multiply_adds=64 * layers * channels * channels,
    )


class LightRun:
    """One run, which may die and come back from its last checkpoint.

    Args:
        number: of the run.
        layers: of its model.
        seeds: of each layer.
        bus: that it talks to.
        seed: of what it makes up.

    Attributes:
        carried_out: commands that the state knows, each as often as it was carried out.
        decided: questions that were.
        heard: decisions that were delivered, of all runs.
    """

    def __init__(self, number: int, layers: int, seeds: int, bus: Bus, seed: int) -> None:
        self.run_id, self.layers, self.seeds, self._bus = f"run-{number}", layers, seeds, bus
        self._codec, self._chance = Codec(), random.Random(seed * 1_000_003 + number)
        self.carried_out: Counter[str] = Counter()
        self._answers: dict[str, Answer] = {}
        self.step_count, self.is_finished, self.position = 0, False, SimpleNamespace(arm=None)
        self._saved: tuple[int, Counter[str], dict[str, Answer]] = 0, Counter(), {}
        self._open: set[int] = set()
        self._questions = 0
        self.decided = self.heard = self.deaths = 0
        self._decisions: Subscription | None = None
        self._begin()

    def _begin(self) -> None:
        self._unsent: list[Body] = []
        self._desk = CommandDesk(self._codec, self.run_id, cast(Session, self), self._unsent.append)
        self._commands = self._desk.join(self._bus)

    # What a CommandDesk asks of a session

    def answer_to(self, command_id: str, *, is_durable: bool = False) -> Answer | None:
        return (self._saved[2] if is_durable else self._answers).get(command_id)

    def submit_once(self, command: Command) -> Answer:
        known = self._answers.get(command.id)
        if known is None:
            self.carried_out[command.id] += 1
            known = self._answers[command.id] = Answer(True, "", command_id=command.id)
        return known

    # What it does

    def tell(self) -> None:
        """One boundary: a step further, what its seeds have sensed, and a heartbeat."""
        self.step_count += 1
        self._unsent += bodies(line(self.layers, self.seeds, self.step_count, self._chance), self.run_id)
        self._unsent.append(
            RunHeartbeat(
                run_id=self.run_id,
                step=self.step_count,
                planned_steps=100,
                epoch=self.step_count,
                arm=None,
                train_loss=1.0,
                select_loss=1.0,
                train_flops=1,
                is_finished=False,
                time=time.time(),
            )
        )
        self.send()

    def ask(self) -> None:
        """A question to the controller."""
        if self._decisions is None:
            self._decisions = self._bus.subscribe(Decision.topic, group_of(self.run_id), "policy", start="new")
        self._questions += 1
        self._unsent.append(
            ObservationReport(
                run_id=self.run_id,
                number=self._questions,
                config=CONFIG,
                observation=observation(self.layers, self.seeds, self.step_count, self._chance),
                answers=[],
                state=None,
            )
        )
        self._open.add(self._questions)
        self.send()

    def send(self) -> None:
        """Publish what waits, again and again if the bus does not say that it has it."""
        messages = [self._codec.encode(one, self.run_id) for one in self._unsent]
        self._unsent.clear()
        while messages:
            try:
                self._bus.publish_batch(messages)
                return
            except BusUnavailableError:
                continue

    def listen(self) -> None:
        """Carry out commands, answer them, hear decisions."""
        self._desk.handle(self._commands, 0.0)
        self.send()
        while self._decisions is not None and (found := self._decisions.receive()):
            self.heard += len(found)
            for delivery in found:
                if delivery.message.key == self.run_id:
                    body = self._codec.decode(delivery.message)
                    if isinstance(body, Decision) and body.number in self._open:
                        self._open.remove(body.number)
                        self.decided += 1
            self._decisions.ack(found)

    @property
    def is_waiting(self) -> bool:
        """Whether it has asked and heard nothing yet."""
        return bool(self._open)

    def save(self) -> None:
        """A checkpoint."""
        self._saved = self.step_count, self.carried_out.copy(), dict(self._answers)

    def die(self) -> None:
        """Forget all since the last checkpoint, and begin again from there."""
        self.deaths += 1
        self.step_count, carried_out, answers = self._saved
        self.carried_out, self._answers = carried_out.copy(), dict(answers)
        self._begin()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
