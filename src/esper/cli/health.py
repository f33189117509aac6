"""Whether a process that serves is well, over HTTP: what an orchestrator asks."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from esper.cli.options import MAX_PORT
from esper.contracts.errors import ConfigError

LATE_AFTER_S = 60.0
"""A turn of the loop takes about a second; one that takes this long hangs."""


class Health:
    """Answers ``/livez`` and ``/readyz`` from a thread of its own: 200, or 503 and what is wrong.

    Args:
        at: ``ADDRESS:PORT`` to listen at; port 0 takes a free one.
        now: seconds of a clock that only goes forward.

    Attributes:
        port: at which it listens.

    Raises:
        ConfigError: if the port is taken, or the address is none of this machine.
    """

    def __init__(self, at: str, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last, self._hears = now(), False
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wrong = health.wrong(self.path)
                body = f"{wrong or 'well'}\n".encode()
                self.send_response(404 if wrong == _UNKNOWN else 503 if wrong else 200)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A line for every probe would drown the others."""

        try:
            self._server = ThreadingHTTPServer(address(at), Handler)
        except OSError as error:
            raise ConfigError(f"--health {at}: {error.strerror}. Name another port or address.") from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="esper-health", daemon=True)
        self._thread.start()

    def beat(self, hears: bool) -> None:
        """The loop has come round.

        Args:
            hears: whether the bus has answered.
        """
        self._last, self._hears = self._now(), hears

    def wrong(self, path: str) -> str | None:
        """What is wrong, asked at this path; None if nothing is."""
        if path not in ("/livez", "/readyz"):
            return _UNKNOWN
        if self._now() - self._last > LATE_AFTER_S:
            return f"nothing was done for {LATE_AFTER_S:.0f} seconds"
        return None if self._hears or path == "/livez" else "the bus does not answer"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_UNKNOWN = "ask at /livez or /readyz"


def address(text: str) -> tuple[str, int]:
    """``ADDRESS:PORT`` in two.

    Raises:
        ConfigError: if it is no such thing.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(f"--health must be ADDRESS:PORT, such as 127.0.0.1:8080, not {text!r:.80}.")
    return host, int(port)
