"""Commands while consumers and the broker are killed: which are lost, which are carried out twice.

A consumer's state is a file; what is appended to it by one write is an effect and its mark at once, as a run's
checkpoint holds both. Three consumers: *ours* looks into its state before it acts and acks what its state holds, as
:class:`esper.runtime.link.commands.ControlCommandHandler` does; *naive* acts and acks; *marks first* acks and acts.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bus.brokers import redis_server
from esper.contracts.errors import BusError
from esper.oona.codec import Codec
from esper.oona.messages import CommandAck, RollbackCommand
from esper.oona.url import open_bus

KINDS = ("ours", "naive", "marks first")
_BATCH = 20
_REDELIVER_AFTER_S = 1.0


def consume(url: str, state: Path, kind: str) -> None:
    """Carry out commands until killed."""
    effects = os.open(state, os.O_CREAT | os.O_APPEND | os.O_RDWR)
    known = set(state.read_text().split())
    codec = Codec()
    while True:
        try:
            bus = open_bus(url)
            subscription = bus.subscribe(
                RollbackCommand.topic, "run", str(os.getpid()), start="oldest", redeliver_after_s=_REDELIVER_AFTER_S
            )
            while True:
                for delivery in subscription.receive(_BATCH, timeout_s=0.5):
                    asked: Any = codec.decode(delivery.message)
                    if kind == "marks first":
                        subscription.ack([delivery])
                    if kind != "ours" or asked.command_id not in known:
                        os.write(effects, f"{asked.command_id}\n".encode())
                        known.add(asked.command_id)
                    if kind != "marks first":
                        ack = CommandAck(
                            run_id="run", command_id=asked.command_id, accepted=True, reason="", versions=[], step=1
                        )
                        bus.publish(codec.encode(ack, "run"))
                        subscription.ack([delivery])
        except BusError:
            time.sleep(0.05)


def trial(kind: str, commands: int, kills: int, broker_kills: int, seed: int = 0) -> dict[str, Any]:
    """So many commands to one kind of consumer, with so many kills, each in the middle of its work.

    Args:
        kind: of the consumer.
        commands: that are published at the start.
        kills: of consumers, at least one more than ``broker_kills``.
        broker_kills: of the broker, whose append-only file is flushed with every write.
        seed: of the moments.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, state = Path(name), Path(name) / "effects"
        state.touch()
        (folder / "redis").mkdir()
        left, port = kills, None
        for stage in range(broker_kills + 1):
            with redis_server(str(folder / "redis"), durable=True, port=port) as (url, broker):
                port = int(url.rpartition(":")[2])
                if stage == 0:
                    _ask(url, commands)
                share = left // (broker_kills + 1 - stage)
                left -= share
                for _ in range(share):
                    with _consumer(kind, state, url) as consumer:
                        _wait_for_effects(state, chance.randint(1, max(1, 2 * (commands // kills) - 10)), consumer)
                if stage < broker_kills:
                    broker.send_signal(signal.SIGKILL)
                    continue
                with _consumer(kind, state, url) as consumer:  # the last one finishes, and what was held comes again
                    while _wait_for_effects(state, 1, consumer, within_s=4 * _REDELIVER_AFTER_S):
                        pass
                acks = _acks(url)
        effects, asked = Counter(state.read_text().split()), set(map(str, range(commands)))
        return {
            "commands": commands,
            "kills_of_consumers": kills,
            "kills_of_the_broker": broker_kills,
            "lost": len(asked - set(effects)),
            "doubled": sum(count > 1 for count in effects.values()),
            "acked": len(set(acks) & asked),
            "acks_that_came_again": len(acks) - len(set(acks)),
        }


@contextmanager
def _consumer(kind: str, state: Path, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is killed at the end."""
    command = [sys.executable, "-m", "benchmarks.bus.faults", kind, str(state), url]
    process = subprocess.Popen(command, env=os.environ)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_for_effects(state: Path, more: int, consumer: "subprocess.Popen[bytes]", within_s: float = 30.0) -> bool:
    """Whether the state has grown by so many lines in time."""
    before, deadline = state.read_bytes().count(b"\n"), time.monotonic() + within_s
    while state.read_bytes().count(b"\n") < before + more:
        if time.monotonic() > deadline or consumer.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def _ask(url: str, commands: int) -> None:
    bus, codec = open_bus(url), Codec()
    asked = [RollbackCommand(run_id="run", command_id=str(number)) for number in range(commands)]
    for start in range(0, commands, 500):
        bus.publish_batch([codec.encode(one, "run") for one in asked[start : start + 500]])
    bus.close()


def _acks(url: str) -> list[str]:
    bus, codec, found = open_bus(url), Codec(), []
    subscription = bus.subscribe(CommandAck.topic, "all", "one", start="oldest")
    while deliveries := subscription.receive(1000):
        found += [getattr(codec.decode(one.message), "command_id", "") for one in deliveries]
        subscription.ack(deliveries)
    bus.close()
    return found


if __name__ == "__main__":
    consume(sys.argv[3], Path(sys.argv[2]), sys.argv[1])
