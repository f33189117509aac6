"""What is special about Redis: users with few rights, a server without memory, and one that was emptied."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from esper.contracts.errors import BusError, BusUnavailableError
from esper.oona.bus import Message
from esper.oona.url import open_bus

TOPIC = "tests.redis"
DOCUMENT = Path(__file__).parents[2] / "docs" / "bus.md"
ACL = re.findall(r"^ACL SETUSER (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)


@pytest.fixture
def server(redis_url) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    yield client
    for line in ACL:
        client.acl_deluser(line.split()[0])
    client.config_set("maxmemory", 0)
    client.flushall()
    client.close()


def as_user(url: str, name: str, password: str = "SECRET") -> str:
    return url.replace("redis://", f"redis://{name}:{password}@")


def test_users_with_the_rights_of_the_page_can_do_their_work(server, redis_url):
    for line in ACL:
        server.execute_command("ACL", "SETUSER", *line.split())
    run, serve, look = (open_bus(as_user(redis_url, name)) for name in ("run", "serve", "look"))
    heard = serve.subscribe(TOPIC, "group", "one", redeliver_after_s=0.01)
    run.publish_batch([Message(TOPIC, "run", b"1"), Message(TOPIC, "run", b"2")])
    first, second = heard.receive(timeout_s=5)
    heard.ack([first])
    heard.reject(second, "no good")
    tail = look.subscribe(TOPIC, "tail", "one", start="oldest")
    tail.ack(tail.receive(timeout_s=5))
    look.forget(TOPIC, "tail")
    assert (look.topics(), [letter.reason for letter in look.dead_letters(TOPIC)]) == ({TOPIC: 2}, ["no good"])
    with pytest.raises(BusError, match="refuses us"):
        look.publish(Message(TOPIC, "run", b"3"))
    for bus in (run, serve, look):
        bus.close()


def test_a_user_without_rights_is_told_so_without_the_password(server, redis_url):
    server.execute_command("ACL", "SETUSER", "run", "on", ">SECRET", "~other:*", "+ping", "+xadd")
    bus = open_bus(as_user(redis_url, "run"))
    with pytest.raises(BusError, match="refuses us") as caught:
        bus.publish(Message(TOPIC, "run", b"1"))
    assert "SECRET" not in str(caught.value)
    bus.close()


def test_a_server_without_memory_is_unavailable(server, redis_url):
    bus = open_bus(redis_url)
    server.config_set("maxmemory", 1)
    with pytest.raises(BusUnavailableError, match="memory"):
        bus.publish(Message(TOPIC, "run", b"1"))
    server.config_set("maxmemory", 0)
    bus.publish(Message(TOPIC, "run", b"1"))
    bus.close()


def test_a_server_that_was_emptied_is_noticed_and_what_comes_then_is_heard(server, redis_url):
    bus = open_bus(redis_url)
    heard = bus.subscribe(TOPIC, "group", "one")
    bus.publish(Message(TOPIC, "run", b"before"))
    server.flushall()
    bus.publish(Message(TOPIC, "run", b"after"))
    found = heard.receive(timeout_s=1.0) + heard.receive(timeout_s=1.0)
    assert [one.message.body for one in found] == [b"after"]
    assert bus.statistics.wiped == 1
    bus.close()
