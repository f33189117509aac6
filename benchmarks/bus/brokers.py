"""Real brokers on loopback for the benchmarks."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.contracts.errors import BusError
from esper.oona.url import open_bus


@contextmanager
def redis_server(
    folder: str, *, full: bool = False, durable: bool = False, port: int | None = None
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """URL and process of a Redis server.

    Args:
        folder: where it keeps its files.
        full: whether it has no memory left for messages.
        durable: whether it has an append-only file that is flushed with every command.
        port: its port; None takes a free one.
    """
    port = port or _free_port()
    options = ["--save", "", "--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
    options += ["--maxmemory", "1", "--maxmemory-policy", "noeviction"] if full else []
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, *options]
    with _running(command, f"redis://127.0.0.1:{port}", folder) as process:
        yield f"redis://127.0.0.1:{port}", process


@contextmanager
def nats_server(folder: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """URL and process of a NATS server with JetStream."""
    port = _free_port()
    command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", f"{folder}/store"]
    with _running(command, f"nats://127.0.0.1:{port}", folder) as process:
        yield f"nats://127.0.0.1:{port}", process


@contextmanager
def _running(command: list[str], url: str, folder: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (Path(folder) / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                open_bus(url).close()
                break
            except BusError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
