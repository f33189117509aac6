"""``python -m benchmarks.bus WHAT`` measures the message bus; results go to ``benchmarks/results/bus``.

``rates``: messages a second and milliseconds from command to ack, for every transport. ``steps``: what a run pays.
``faults``: commands while consumers and broker are killed. ``fuzz``: messages that are noise. ``compression``: what
zstd takes off. Needs redis-server and nats-server.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.bus import faults, fuzz, load, steps
from benchmarks.bus.brokers import nats_server, redis_server
from benchmarks.measurements import keep


@contextmanager
def urls() -> Iterator[dict[str, str]]:
    """A bus of every transport that serves several processes, but Kafka, whose broker is no package of Debian."""
    with ExitStack() as stack:
        folders = {name: stack.enter_context(tempfile.TemporaryDirectory()) for name in ("sqlite", "redis", "nats")}
        yield {
            "sqlite": f"sqlite:{folders['sqlite']}/bus.db",
            "redis": stack.enter_context(redis_server(folders["redis"]))[0],
            "nats": stack.enter_context(nats_server(folders["nats"]))[0],
        }


def rates(seconds: float) -> dict[str, Any]:
    """Throughput and latency of every transport."""
    found = {}
    with urls() as buses:
        for name, url in buses.items():
            count = 100_000 if name == "redis" else 20_000
            found[name] = {
                "256 B": load.throughput(url, 256, count),
                "reports of 1000 seeds": load.throughput(url, len(load.encoded_report(1000)), count // 10),
                "command to ack, quiet": load.latency(url, min(seconds, 10.0), 0),
                "command to ack, 1500 reports of 1000 seeds a second": load.latency(
                    url, seconds if name == "redis" else min(seconds, 10.0), 1500
                ),
            }
            if name == "redis":
                found[name]["peak: 200 places of 1000 seeds, 5 times a second"] = load.peak(url, 5, 20)
                found[name]["ten times that"] = load.peak(url, 50, 10)
            print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    """Measure one thing and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rates", "steps", "faults", "fuzz", "compression"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each latency under load")
    parser.add_argument("--commands", type=int, default=30_000)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--broker-kills", type=int, default=50)
    options = parser.parse_args()
    found: dict[str, Any]
    match options.what:
        case "rates":
            found = rates(options.seconds)
        case "steps":
            found = steps.measure()
        case "compression":
            found = load.compression()
        case "fuzz":
            found = fuzz.measure()
        case _:
            found = {"ours": faults.trial("ours", options.commands, options.kills, options.broker_kills)}
            for kind in ("naive", "marks first"):  # the controls show it with a tenth
                found[kind] = faults.trial(
                    kind, options.commands // 10, options.kills // 10, options.broker_kills // 10
                )
    keep("bus", options.what, found)


if __name__ == "__main__":
    main()
