"""One suite that every transport passes, against the real broker."""

import itertools
import random
import threading
import time
from collections.abc import Iterator

import pytest

from esper.contracts.errors import BusError
from esper.oona.bus import Bus, Delivery, Message, Subscription
from esper.oona.url import open_bus

TRANSPORTS = ["memory", "sqlite", "redis", "nats", "kafka"]
_names = itertools.count()


@pytest.fixture(params=TRANSPORTS)
def url(request, tmp_path) -> str:
    if request.param == "memory":
        return f"memory:{tmp_path}"
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'bus.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def bus(url) -> Iterator[Bus]:
    one = open_bus(url)
    yield one
    one.close()


@pytest.fixture
def topic() -> str:
    """Of this test alone: brokers serve the whole session."""
    return f"tests.topic_{next(_names)}"


def messages(topic: str, count: int, key: str = "run") -> list[Message]:
    return [Message(topic, key, f"body {number}".encode(), {"number": str(number)}) for number in range(count)]


def received(subscription: Subscription, count: int, within_s: float = 60.0) -> list[Delivery]:
    """So many deliveries, or those that came in time; not acked."""
    found: list[Delivery] = []
    deadline = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < deadline:
        found += subscription.receive(count - len(found), timeout_s=0.5)
    return found


def nothing_more(subscription: Subscription, within_s: float = 0.3) -> bool:
    return subscription.receive(10, timeout_s=within_s) == []


def test_what_is_published_comes_whole_and_in_order(bus, topic):
    sent = [Message(topic, "a run", bytes(range(256)), {"schema": "x/1", "odd": "ü\n"}), *messages(topic, 50)]
    with_group = bus.subscribe(topic, "group", "one")
    bus.publish(sent[0])
    bus.publish_batch(sent[1:])
    got = received(with_group, len(sent))
    assert sorted((one.message for one in got), key=sent.index) == sent
    of_one_key = [one.message for one in got if one.message.key == "run"]
    assert of_one_key == sent[1:]
    assert {one.attempt for one in got} == {1}
    assert len({one.id for one in got}) == len(sent)
    with_group.ack(got)
    assert nothing_more(with_group)
    assert (bus.statistics.published, bus.statistics.delivered, bus.statistics.acked) == (51, 51, 51)


def test_every_group_hears_all_and_its_consumers_share(bus, topic):
    alone = bus.subscribe(topic, "alone", "one")
    shared = [bus.subscribe(topic, "shared", name) for name in ("one", "two")]
    deadline = time.monotonic() + 60
    while any(getattr(one, "num_partitions", 2) != 2 for one in shared) and time.monotonic() < deadline:
        for one in shared:  # Kafka deals its four partitions while its consumers receive
            assert one.receive(1, timeout_s=0.1) == []
    bus.publish_batch([message for key in "abcdefgh" for message in messages(topic, 10, key)])
    assert len(received(alone, 80)) == 80
    bodies: list[tuple[str, bytes]] = []
    deadline = time.monotonic() + 60
    while len(bodies) < 80 and time.monotonic() < deadline:
        for one in shared:
            got = one.receive(7, timeout_s=0.1)
            one.ack(got)
            bodies += [(delivery.message.key, delivery.message.body) for delivery in got]
    assert len(bodies) == len(set(bodies)) == 80


def test_a_new_group_hears_what_comes_or_all_that_is_held(bus, topic):
    bus.publish_batch(messages(topic, 3))
    new, oldest = bus.subscribe(topic, "new", "one"), bus.subscribe(topic, "oldest", "one", start="oldest")
    bus.publish(Message(topic, "run", b"later"))
    assert [one.message.body for one in received(new, 1)] == [b"later"]
    assert len(received(oldest, 4)) == 4
    assert nothing_more(new)


def test_a_group_goes_on_where_it_was(url, topic):
    first = open_bus(url)
    subscription = first.subscribe(topic, "group", "one")
    first.publish_batch(messages(topic, 6))
    subscription.ack(received(subscription, 4))
    subscription.close()
    first.close()
    second = open_bus(url)
    second.publish(Message(topic, "run", b"later"))
    got = received(second.subscribe(topic, "group", "one", redeliver_after_s=60.0), 3)
    assert [one.message.body for one in got] == [b"body 4", b"body 5", b"later"]
    second.close()


def test_what_a_dead_consumer_held_goes_to_another(bus, topic):
    dead = bus.subscribe(topic, "group", "dead", redeliver_after_s=0.5)
    bus.publish_batch(messages(topic, 5))
    acked = list({one.id: one for one in received(dead, 5)}.values())[:2]  # on a slow machine some have come again
    dead.ack(acked)
    dead.close()
    left = {f"body {number}".encode() for number in range(5)} - {one.message.body for one in acked}
    alive = bus.subscribe(topic, "group", "alive", redeliver_after_s=0.5)
    got: list[Delivery] = []
    deadline = time.monotonic() + 60
    while not left <= {one.message.body for one in got} and time.monotonic() < deadline:
        more = alive.receive(5, timeout_s=0.5)
        alive.ack(more)
        got += more
    assert {one.message.body for one in got} == left
    time.sleep(0.6)
    assert nothing_more(alive)


def test_what_is_held_for_too_long_comes_again_and_says_so(bus, topic):
    subscription = bus.subscribe(topic, "group", "one", redeliver_after_s=0.5)
    bus.publish(Message(topic, "run", b"slow"))
    (first,) = received(subscription, 1)
    (again,) = received(subscription, 1)
    assert (again.id, again.message) == (first.id, first.message)
    assert again.attempt > 1
    assert bus.statistics.redelivered == 1
    subscription.ack([again])
    time.sleep(0.6)
    assert nothing_more(subscription)


def test_a_dead_letter_keeps_its_reason_until_it_is_requeued(bus, topic):
    subscription = bus.subscribe(topic, "group", "one", redeliver_after_s=2.0)
    sent = messages(topic, 2)
    bus.publish_batch(sent)
    for one in received(subscription, 2):
        subscription.reject(one, f"no good: {one.message.body.decode()}")
    time.sleep(2.2)
    assert nothing_more(subscription)
    letters = bus.dead_letters(topic)
    assert [letter.message for letter in letters] == sent
    assert [letter.reason for letter in letters] == ["no good: body 0", "no good: body 1"]
    assert {letter.group for letter in letters} == {"group"}
    assert all(abs(time.time() - letter.time) < 600 for letter in letters)
    assert bus.dead_letters(topic, 1) == letters[:1]
    assert bus.requeue(topic, [letters[0].id, "9999-0" if "-" in letters[0].id else "9999"]) == 1
    assert bus.dead_letters(topic) == letters[1:]
    (back,) = received(subscription, 1)
    assert back.message == sent[0]


def test_waiting_ends_when_something_comes_or_the_time_is_over(bus, topic):
    subscription = bus.subscribe(topic, "group", "one")
    assert subscription.receive(1, timeout_s=0.2) == []
    late = threading.Timer(0.3, bus.publish, [Message(topic, "run", b"late")])
    late.start()
    assert [one.message.body for one in received(subscription, 1)] == [b"late"]
    late.join()


def test_a_group_that_is_forgotten_begins_anew(bus, topic):
    if type(bus).__name__ == "KafkaBus":
        pytest.skip("the mock broker cannot delete groups")
    bus.forget(topic, "never_there")
    subscription = bus.subscribe(topic, "group", "one", redeliver_after_s=0.5)
    bus.publish_batch(messages(topic, 3))
    assert len(received(subscription, 3)) == 3
    subscription.close()
    bus.forget(topic, "group")
    assert nothing_more(bus.subscribe(topic, "group", "one", redeliver_after_s=0.5), within_s=1.0)


def test_topics_are_listed_with_what_they_hold(bus, topic):
    bus.publish_batch(messages(topic, 3))
    assert bus.topics()[topic] == 3


@pytest.mark.parametrize("bad", ["", "a b", "A", "a..b", "a.*", "ä", "x" * 201])
def test_what_is_no_topic_is_refused(bus, topic, bad):
    for ask in (
        lambda: bus.publish_batch([Message(topic, "run", b""), Message(bad, "run", b"")]),
        lambda: bus.subscribe(bad, "group", "one"),
        lambda: bus.dead_letters(bad),
    ):
        with pytest.raises(BusError, match="is no topic"):
            ask()
    assert bus.statistics.published == 0


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", "x" * 201])
def test_what_is_no_name_is_refused(bus, topic, bad):
    for names in ((bad, "one"), ("group", bad)):
        with pytest.raises(BusError, match=r"is no (group|consumer)"):
            bus.subscribe(topic, *names)
    with pytest.raises(BusError, match="is no key"):
        bus.publish(Message(topic, "", b""))


class TestWhatIsGone:
    """Dropped from a topic that is full before a group had read it: counted, not skipped in silence."""

    BOUND = 200

    @pytest.fixture
    def bounded(self, url) -> Iterator[Bus]:
        if url.startswith("kafka"):
            pytest.skip("how long Kafka holds messages is its own setting, which its mock broker does not have")
        one = open_bus(f"{url}?bound={self.BOUND}")
        yield one
        one.close()

    def test_is_counted_once(self, bounded, topic):
        subscription = bounded.subscribe(topic, "group", "one")
        bounded.publish_batch(messages(topic, 1000))
        held = bounded.topics()[topic]
        assert self.BOUND <= held <= 2 * self.BOUND
        got = received(subscription, held)
        assert got[-1].message.body == b"body 999"
        assert nothing_more(subscription)
        assert bounded.statistics.lost == 1000 - held
        subscription.ack(got)
        bounded.publish_batch(messages(topic, 3))
        assert len(received(subscription, 3)) == 3
        assert bounded.statistics.lost == 1000 - held

    def test_nothing_is_counted_where_all_was_read(self, bounded, topic):
        """The control."""
        subscription = bounded.subscribe(topic, "group", "one")
        for _ in range(10):
            bounded.publish_batch(messages(topic, 100))
            subscription.ack(received(subscription, 100))
        assert (bounded.statistics.lost, bounded.statistics.acked) == (0, 1000)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6))])
def test_whatever_is_done_in_whatever_order_each_group_comes_to_each_message_once(url, topic, seed):
    """Publishers and consumers come, work, forget to answer and go at random; at the end a patient one takes the rest.

    Acked is each message once; what is delivered again was not acked before. Kafka's positions may bring back what was
    acked behind something that was not.
    """
    chance, bus = random.Random(seed), open_bus(url)
    sent: list[bytes] = []
    acked: dict[str, list[bytes]] = {"a": [], "b": []}
    rejected: dict[str, list[bytes]] = {"a": [], "b": []}
    consumers = {group: bus.subscribe(topic, group, "first", redeliver_after_s=3.0) for group in acked}

    def answer(group: str, deliveries: list[Delivery]) -> None:
        for one in deliveries:
            done = acked[group] + rejected[group]
            assert one.message.body not in done or url.startswith("kafka")
            match chance.choice(["ack", "ack", "ack", "reject", "forget"]):
                case "ack":
                    consumers[group].ack([one])
                    acked[group].append(one.message.body)
                case "reject":
                    consumers[group].reject(one, "by chance")
                    rejected[group].append(one.message.body)

    for turn in range(30):
        group = chance.choice(["a", "b"])
        match chance.choice(["publish", "publish", "receive", "receive", "receive", "leave"]):
            case "publish":
                bodies = [f"{turn}-{number}".encode() for number in range(chance.randint(1, 9))]
                bus.publish_batch([Message(topic, chance.choice("xyz"), body) for body in bodies])
                sent += bodies
            case "receive":
                answer(group, consumers[group].receive(chance.randint(1, 9), timeout_s=0.05))
            case "leave" if not url.startswith("kafka"):  # whose groups take seconds to notice
                consumers[group].close()
                consumers[group] = bus.subscribe(topic, group, f"turn{turn}", redeliver_after_s=3.0)
    for group, consumer in consumers.items():
        deadline = time.monotonic() + 60
        while set(acked[group] + rejected[group]) != set(sent) and time.monotonic() < deadline:
            rest = consumer.receive(50, timeout_s=0.5)
            consumer.ack(rest)
            fresh = dict.fromkeys(one.message.body for one in rest)
            acked[group] += [one for one in fresh if one not in acked[group] + rejected[group]]
        assert set(acked[group]) | set(rejected[group]) == set(sent)
        if not url.startswith("kafka"):
            assert len(acked[group] + rejected[group]) == len(sent)
    letters = sorted(letter.message.body for letter in bus.dead_letters(topic))
    assert letters == sorted(rejected["a"] + rejected["b"])
    bus.close()
