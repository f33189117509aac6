"""What is special about NATS: its client asks twice, and the time may run out between the two."""

from esper.contracts.errors import BusUnavailableError
from esper.oona import nats_jetstream
from esper.oona.bus import Message
from esper.oona.url import open_bus


def test_a_wait_that_ends_between_the_clients_two_requests_has_found_nothing(nats_url, monkeypatch):
    """Where it ends there the client raises a bare TimeoutError, else its own: which of them is a matter of chance."""
    bus = open_bus(nats_url)
    subscription = bus.subscribe("tests.nats_times", "group", "one")
    for tenths in range(1, 60):
        monkeypatch.setattr(nats_jetstream, "_NO_WAIT_S", tenths * 1e-4)
        try:
            assert subscription.receive(2) == []
        except BusUnavailableError as error:
            raise AssertionError(f"after {tenths / 10} ms") from error
    bus.publish(Message("tests.nats_times", "run", b"there"))
    assert [one.message.body for one in subscription.receive(2, timeout_s=5.0)] == [b"there"]
    bus.close()
