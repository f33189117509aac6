"""Brokers for tests: the real servers on loopback, started here and stopped by their process ids."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.contracts.errors import BusError
from esper.oona.url import open_bus


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require(server: str) -> None:
    """Skip the test where there is no such server, unless that is not allowed."""
    if shutil.which(server) is None:
        assert os.environ.get("ESPER_SERVERS") != "required", f"there is no {server}: run scripts/servers"
        pytest.skip(f"there is no {server}: scripts/servers installs it")


def started(command: list[str], url: str, log: Path) -> subprocess.Popen[bytes]:
    """A server that answers."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        try:
            open_bus(url).close()
            return process
        except BusError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory) -> Iterator[str]:
    require("redis-server")
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    process = started(["redis-server", *options], f"redis://127.0.0.1:{port}/0", folder / "log")
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory) -> Iterator[str]:
    require("nats-server")
    folder, port = tmp_path_factory.mktemp("nats"), free_port()
    options = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "store")]
    process = started(["nats-server", *options], f"nats://127.0.0.1:{port}", folder / "log")
    yield f"nats://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    """The mock broker within the client library: a real one takes a JVM."""
    from confluent_kafka import Producer

    owner = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = owner.list_topics(timeout=30).brokers.values()
    yield f"kafka://{broker.host}:{broker.port}"
    del owner
