"""The claim check: a large payload lies in a store, and the message carries only where, how large and its digest.

The pattern is of Hohpe and Woolf, Enterprise Integration Patterns (2003). Consumers get the payload as if it had come
along.
"""

import hashlib
import secrets
import time
from dataclasses import replace
from typing import Any

from esper.oona.bus import Message, UnreadableError
from esper.oona.stores import open_store

CLAIM, DIGEST, SIZE, UNTIL = "claim", "claim-digest", "claim-bytes", "claim-until"


class Claims:
    """Puts large payloads into a store and fetches them back.

    Args:
        url: of the store: ``file:///FOLDER``, ``s3://BUCKET/FOLDER`` and whatever else obstore knows, or ``redis://``.
        from_bytes: size of a payload from which on it goes there.
        lifetime_s: after which a payload is refused, and is swept away by whoever leaves another one.
        options: credentials and the like of an object store; never told in errors.
    """

    def __init__(self, url: str, from_bytes: int = 2**20, lifetime_s: float = 300.0, **options: Any) -> None:
        self._store = open_store(url, lifetime_s, **options)
        self._from_bytes, self._lifetime_s = from_bytes, lifetime_s
        self._next_sweep = 0.0  # time.monotonic()

    def check_in(self, message: Message) -> Message:
        """The message, with a large payload left in the store.

        Raises:
            BusUnavailableError: if the store does not take it.
        """
        if len(message.body) < self._from_bytes:
            return message
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + self._lifetime_s
            self._store.sweep()
        name = secrets.token_hex(16)
        self._store.put(name, message.body)
        claim = {
            CLAIM: name,
            DIGEST: hashlib.sha256(message.body).hexdigest(),
            SIZE: str(len(message.body)),
            UNTIL: repr(time.time() + self._lifetime_s),
        }
        return replace(message, body=b"", headers={**message.headers, **claim})

    def redeem(self, message: Message, most_bytes: int) -> Message:
        """The message as it was before :meth:`check_in`.

        Args:
            message: with a claim among its headers.
            most_bytes: size of a payload that is not fetched any more.

        Raises:
            UnreadableError: if its payload is late, missing, or another than the one that was left.
            BusUnavailableError: if the store does not answer: try again.
        """
        headers = dict(message.headers)
        name, digest, size, until = (headers.pop(one, "") for one in (CLAIM, DIGEST, SIZE, UNTIL))
        if not name.isalnum() or not size.isdecimal():
            raise UnreadableError("its claim names nothing that a store could hold")
        if int(size) > most_bytes:
            raise UnreadableError(f"its payload has {size[:20]} bytes; at most {most_bytes} are read")
        if not _is_later(until):
            raise UnreadableError("its payload is late")
        try:
            if (found := self._store.size(name)) != int(size):
                raise UnreadableError(f"its payload has {found} bytes, not {size}")
            body = self._store.get(name)
        except FileNotFoundError:
            raise UnreadableError("its payload is missing") from None
        if hashlib.sha256(body).hexdigest() != digest:
            raise UnreadableError("its payload is another than the one that was left")
        return replace(message, body=body, headers=headers)


def _is_later(until: str) -> bool:
    try:
        return float(until) > time.time()
    except ValueError:
        return False
