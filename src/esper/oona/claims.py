"""The claim check: a large payload lies in a store, and the message carries only where, how large and its digest.

The pattern is of Hohpe and Woolf, Enterprise Integration Patterns (2003). Consumers get the payload as if it had come
along.
"""

import hashlib
import secrets
import time
from dataclasses import replace
from typing import Any

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.store import from_url

from esper.contracts.errors import BusUnavailableError
from esper.oona.bus import Message, UnreadableError

CLAIM, DIGEST, SIZE, UNTIL = "claim", "claim-digest", "claim-bytes", "claim-until"
_FOLDER = "esper-claims/"


class Claims:
    """Puts large payloads into a store and fetches them back.

    Args:
        url: of the store: ``memory:///``, ``file:///FOLDER``, ``s3://BUCKET/FOLDER`` and whatever else obstore knows.
        from_bytes: size of a payload from which on it goes there.
        lifetime_s: after which a payload is refused, and may be swept away.
        options: credentials and the like of the store; never told in errors.
    """

    def __init__(self, url: str, from_bytes: int = 2**20, lifetime_s: float = 300.0, **options: Any) -> None:
        self._store: Any = from_url(url, **options)
        self._from_bytes, self._lifetime_s = from_bytes, lifetime_s

    def check_in(self, message: Message) -> Message:
        """The message, with a large payload left in the store.

        Raises:
            BusUnavailableError: if the store does not take it.
        """
        if len(message.body) < self._from_bytes:
            return message
        name = _FOLDER + secrets.token_hex(16)
        try:
            obstore.put(self._store, name, message.body)
        except StoreError as error:
            raise BusUnavailableError(f"The store of large payloads does not take one: {_kind(error)}.") from None
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
        if not name.startswith(_FOLDER) or not name.removeprefix(_FOLDER).isalnum() or not size.isdecimal():
            raise UnreadableError("its claim names nothing that a store could hold")
        if int(size) > most_bytes:
            raise UnreadableError(f"its payload has {size[:20]} bytes; at most {most_bytes} are read")
        if not _is_later(until):
            raise UnreadableError("its payload is late")
        try:
            found = obstore.head(self._store, name)["size"]
            if found != int(size):
                raise UnreadableError(f"its payload has {found} bytes, not {size}")
            body = bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            raise UnreadableError("its payload is missing") from None
        except StoreError as error:
            raise BusUnavailableError(f"The store of large payloads does not answer: {_kind(error)}.") from None
        if hashlib.sha256(body).hexdigest() != digest:
            raise UnreadableError("its payload is another than the one that was left")
        return replace(message, body=body, headers=headers)

    def sweep(self) -> int:
        """Take away payloads that are older than their lifetime.

        Returns:
            How many.
        """
        now, old = time.time(), []
        for page in obstore.list(self._store, prefix=_FOLDER):
            old += [one["path"] for one in page if now - one["last_modified"].timestamp() > self._lifetime_s]
        if old:
            obstore.delete(self._store, old)
        return len(old)


def _is_later(until: str) -> bool:
    try:
        return float(until) > time.time()
    except ValueError:
        return False


def _kind(error: Exception) -> str:
    """Its text may quote credentials."""
    return type(error).__name__
