"""Opens the bus that a URL names."""

import socket
from importlib import import_module
from urllib.parse import parse_qsl, urlsplit

from esper.contracts.errors import BusError, BusUnavailableError, closest
from esper.oona.bus import DEFAULT_BOUND, Bus

_CONNECT_S = 3.0

_TRANSPORTS = {
    "memory": ("memory", None),
    "sqlite": ("sqlite", None),
    "redis": ("redis_streams", "redis"),
    "rediss": ("redis_streams", "redis"),
    "nats": ("nats_jetstream", "nats"),
    "kafka": ("kafka", "kafka"),
}
"""By scheme: the module here, and the extra that it needs."""


def open_bus(url: str) -> Bus:
    """The bus of a URL.

    Args:
        url: ``memory:`` or ``memory:NAME`` (within this process), ``sqlite:PATH``, ``redis://HOST:PORT/DB``,
            ``rediss://`` (TLS), ``nats://HOST:PORT``, ``kafka://HOST:PORT``; user and password stand before the host.
            ``?bound=N`` bounds the messages that a topic holds.

    Raises:
        BusError: if the URL names no transport, or its library is not installed; secrets of the URL are not told.
        BusUnavailableError: if the broker does not answer.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in _TRANSPORTS or not url.partition(":")[1]:
        raise BusError(f"{shown(url)!r} is no URL of a bus. {closest(scheme, _TRANSPORTS)}")
    bound = _bound(url)
    module, extra = _TRANSPORTS[scheme]
    if scheme == "memory":
        from esper.oona.memory import MemoryBus

        return MemoryBus(rest.partition("?")[0], bound)
    try:
        opened = import_module(f"esper.oona.{module}").connect(url, bound)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("esper"):
            raise
        raise BusError(
            f"{scheme}: needs {error.name}, which is not installed: pip install 'esper-morphogenetic[{extra}]'."
        ) from error
    bus: Bus = opened
    return bus


def check_reachable(url: str, port: int) -> None:
    """Refuse a server that no connection can be made to, at once: clients would go on trying.

    Args:
        url: of the server; of several, the first one counts.
        port: where the URL names none.

    Raises:
        BusUnavailableError: if there is none.
    """
    host, _, own = urlsplit(url).netloc.rpartition("@")[2].partition(",")[0].partition(":")
    try:
        socket.create_connection((host, int(own or port)), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise BusUnavailableError(f"{shown(url)} does not serve us: {error}.") from None


def shown(url: str) -> str:
    """A URL without its secrets: what may stand in logs and errors."""
    scheme, _, rest = url.partition(":")
    authority, slash, path = rest.removeprefix("//").partition("/")
    hidden = "***@" if "@" in authority else ""
    begin = "//" if rest.startswith("//") else ""
    return f"{scheme}:{begin}{hidden}{authority.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def _bound(url: str) -> int:
    options = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    if unknown := set(options) - {"bound"}:
        raise BusError(
            f"{shown(url)!r}: {sorted(unknown)[0]!r} is no option of a bus. {closest(min(unknown), ['bound'])}"
        )
    text = options.get("bound", str(DEFAULT_BOUND))
    if not text.isdecimal() or int(text) < 1:
        raise BusError(f"{shown(url)!r}: bound must be a whole number of at least 1, not {text!r}.")
    return int(text)
