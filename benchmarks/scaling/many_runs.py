"""Many runs on one bus, with controllers, a collector of reports and one who sends commands, in one process.

Commands go out, runs die and come back, publications fail or are doubled, a controller dies with questions in its
hands. At the end :func:`simulate` counts what was lost and what was done twice: nothing may be. Seconds are the
processor's.
"""

import random
import resource
import secrets
import time
from collections import Counter
from typing import Any

from benchmarks.scaling.faulty import FaultyBus
from benchmarks.scaling.light import LightRun
from esper.contracts.errors import BusUnavailableError
from esper.oona.codec import Codec
from esper.oona.memory import MemoryBus
from esper.oona.messages import CommandAck, GerminationCommand, LayerHealthReport, ObservationReport
from esper.tamiyo.serving import Controller

ROUNDS = 3
DIES = 0.02
"""Share of the runs that die in a round."""

FAULTS = {"fails": 0.02, "doubles": 0.02}
HASTE = 100.0
PATIENCE_S = 20.0
"""How long what was not answered may take at the end."""


class Office:
    """Sends commands and hears the answers."""

    def __init__(self, bus: FaultyBus) -> None:
        self._bus, self._codec = bus, Codec()
        self._acks = bus.subscribe(CommandAck.topic, "office", "one")
        self.asked: dict[str, str] = {}
        self.answers: Counter[str] = Counter()

    def command(self, run: LightRun) -> None:
        id_ = f"command-{len(self.asked)}"
        self.asked[id_] = run.run_id
        body = GerminationCommand(
            run_id=run.run_id, command_id=id_, layer_id="blocks.0.mlp", seed_ids="all", blueprint="affine", settings={}
        )
        message = self._codec.encode(body, run.run_id)
        while True:
            try:
                self._bus.publish(message)
                return
            except BusUnavailableError:
                continue

    def listen(self) -> None:
        while found := self._acks.receive():
            for one in found:
                body = self._codec.decode(one.message)
                assert isinstance(body, CommandAck)
                self.answers[body.command_id] += 1
            self._acks.ack(found)


class Collector:
    """Hears all reports, as one that makes metrics of them."""

    def __init__(self, bus: FaultyBus) -> None:
        self._codec, self._reports = Codec(), bus.subscribe(LayerHealthReport.topic, "collector", "one")
        self.reports: Counter[tuple[str, str, int]] = Counter()
        self.bytes, self.seconds, self.longest_queue = 0, 0.0, 0

    def listen(self) -> None:
        begun, heard = time.process_time(), 0
        while found := self._reports.receive(500):
            for one in found:
                body = self._codec.decode(one.message)
                assert isinstance(body, LayerHealthReport)
                self.reports[body.run_id, body.layer_id, body.step] += 1
                self.bytes += len(one.message.body)
            self._reports.ack(found)
            heard += len(found)
        self.longest_queue = max(self.longest_queue, heard)
        self.seconds += time.process_time() - begun


class Service:
    """Controllers that share the questions; the first one dies once, with questions that it took."""

    def __init__(self, bus: FaultyBus, number: int) -> None:
        self._asked = [bus.subscribe(ObservationReport.topic, "tamiyo", f"{one}") for one in range(number)]
        self._controllers = [Controller(bus, Codec(), "heuristic", f"{one}") for one in range(number)]
        self.seconds, self.held_by_the_dead = 0.0, 0

    def die(self) -> None:
        self.held_by_the_dead += len(self._asked[0].receive())

    def answer(self) -> None:
        for controller, subscription in zip(self._controllers, self._asked, strict=True):
            begun = time.process_time()
            try:
                while controller.answer_next(subscription, 0.0):
                    pass
            except BusUnavailableError:  # what it holds comes again
                pass
            self.seconds += time.process_time() - begun


def simulate(
    runs: int,
    layers: int,
    *,
    seeds: int = 4,
    asking: int | None = None,
    controllers: int = 2,
    loses: float = 0.0,
    seed: int = 0,
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """So many runs.

    Args:
        runs: how many.
        layers: of each run.
        seeds: of each layer.
        asking: runs that get a command and ask the controller in each round; None are all.
        controllers: processes that would share the work.
        loses: share of the messages that the bus loses and says it has taken, for the negative control.
        seed: of all moments.
        patience_s: how long to wait at the end for what was not answered.

    Returns:
        Counts of faults, of what was lost and doubled, and processor seconds.
    """
    chance, begun = random.Random(seed), time.process_time()
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    transport = MemoryBus(f"scaling-{secrets.token_hex(4)}")
    bus = FaultyBus(transport, seed, loses=loses, haste=HASTE, **FAULTS)
    office, collector, service = Office(bus), Collector(bus), Service(bus, controllers)
    everyone = [LightRun(number, layers, seeds, bus, seed) for number in range(runs)]
    telling = listening = 0.0
    for round_ in range(ROUNDS):
        chosen = everyone if asking is None else chance.sample(everyone, asking)
        for run in chosen:
            office.command(run)
        start = time.process_time()
        for run in everyone:
            run.tell()
        telling += time.process_time() - start
        for run in chosen:
            run.ask()
        if round_ == 1:
            service.die()
        service.answer()
        collector.listen()
        start = time.process_time()
        for run in everyone:
            run.listen()
            if chance.random() < DIES:
                run.die()
            elif chance.random() < 0.5:
                run.save()
        listening += time.process_time() - start
        office.listen()
    steps = {run.run_id: run.step_count for run in everyone}
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for run in everyone:
            run.save()
        service.answer()
        for run in everyone:
            run.listen()
        office.listen()
        if set(office.asked) <= set(office.answers) and not any(run.is_waiting for run in everyone):
            break
    collector.listen()
    of_the_run = {run.run_id: run for run in everyone}
    expected = {
        (run.run_id, f"blocks.{layer}.mlp", step)
        for run in everyone
        for layer in range(layers)
        for step in range(1, steps[run.run_id] + 1)
    }
    decided = sum(run.decided for run in everyone)
    reports = sum(collector.reports.values())
    return {
        "runs": runs,
        "layers of each": layers,
        "commands": len(office.asked),
        "not answered": len(set(office.asked) - set(office.answers)),
        "not carried out": sum(of_the_run[run].carried_out[id_] == 0 for id_, run in office.asked.items()),
        "carried out twice": sum(count > 1 for run in everyone for count in run.carried_out.values()),
        "answers that came again": sum(office.answers.values()) - len(office.answers),
        "reports lost": len(expected - set(collector.reports)),
        "reports": reports,
        "bytes of reports": collector.bytes,
        "questions decided": decided,
        "without a decision": sum(run.is_waiting for run in everyone),
        "deaths of runs": sum(run.deaths for run in everyone),
        "questions held by a dead controller": service.held_by_the_dead,
        "publications that failed": bus.failed,
        "messages doubled": bus.doubled,
        "messages lost": bus.lost,
        "published a second": round(reports / telling),
        "collected a second": round(reports / collector.seconds),
        "questions a second": round(decided / service.seconds),
        "longest queue": collector.longest_queue,
        "decisions delivered": sum(run.heard for run in everyone),
        "listening s": round(listening, 2),
        "more memory MB": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 1024),
        "seconds": round(time.process_time() - begun, 1),
    }
