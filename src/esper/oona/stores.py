"""Where large payloads lie: in an object store, or in Redis."""

import time
from typing import Any, Protocol

from esper.contracts.errors import BusUnavailableError

_FOLDER = "esper-claims/"


class Store(Protocol):
    """Keeps payloads by name, for a while."""

    def put(self, name: str, body: bytes) -> None:
        """Keep one.

        Raises:
            BusUnavailableError: if the store does not take it.
        """

    def size(self, name: str) -> int:
        """Bytes of one.

        Raises:
            FileNotFoundError: if there is none.
            BusUnavailableError: if the store does not answer.
        """

    def get(self, name: str) -> bytes:
        """One that is there; raises as :meth:`size`."""

    def sweep(self) -> int:
        """Take away what is too old, and say how many that were."""


def open_store(url: str, lifetime_s: float, **options: Any) -> Store:
    """The store of a URL; ``redis://`` and ``rediss://`` are Redis, all else is what obstore knows.

    Args:
        url: where.
        lifetime_s: after which a payload may go.
        options: credentials and the like of an object store.

    Raises:
        ValueError, obstore.exceptions.BaseError: if the URL is none.
    """
    if url.startswith(("redis://", "rediss://")):
        return RedisStore(url, lifetime_s)
    return ObjectStore(url, lifetime_s, **options)


class ObjectStore:
    """Implements :class:`Store` over a folder, S3 and the like."""

    def __init__(self, url: str, lifetime_s: float, **options: Any) -> None:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self._obstore, self._error = obstore, BaseError
        self._store: Any = from_url(url, **options)
        self._lifetime_s = lifetime_s

    def put(self, name: str, body: bytes) -> None:
        try:
            self._obstore.put(self._store, _FOLDER + name, body)
        except self._error as error:
            raise _unavailable(error) from None

    def size(self, name: str) -> int:
        try:
            return int(self._obstore.head(self._store, _FOLDER + name)["size"])
        except self._error as error:
            raise _unavailable(error) from None

    def get(self, name: str) -> bytes:
        try:
            return bytes(self._obstore.get(self._store, _FOLDER + name).bytes())
        except self._error as error:
            raise _unavailable(error) from None

    def sweep(self) -> int:
        now, old = time.time(), []
        try:
            for page in self._obstore.list(self._store, prefix=_FOLDER):
                old += [one["path"] for one in page if now - one["last_modified"].timestamp() > self._lifetime_s]
            if old:
                self._obstore.delete(self._store, old)
        except self._error as error:
            raise _unavailable(error) from None
        return len(old)


class RedisStore:
    """Implements :class:`Store` over Redis, which takes payloads away by itself."""

    def __init__(self, url: str, lifetime_s: float) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url, socket_connect_timeout=3.0, socket_timeout=10.0)
        self._error, self._lifetime_ms = redis.RedisError, max(1, round(1000 * lifetime_s))

    def put(self, name: str, body: bytes) -> None:
        try:
            self._client.set(f"esper:{_FOLDER}{name}", body, px=self._lifetime_ms)
        except self._error as error:
            raise _unavailable(error) from None

    def size(self, name: str) -> int:
        try:
            size = int(self._client.strlen(f"esper:{_FOLDER}{name}"))
        except self._error as error:
            raise _unavailable(error) from None
        if not size:
            raise FileNotFoundError(name)
        return size

    def get(self, name: str) -> bytes:
        try:
            found: bytes | None = self._client.get(f"esper:{_FOLDER}{name}")
        except self._error as error:
            raise _unavailable(error) from None
        if found is None:
            raise FileNotFoundError(name)
        return found

    def sweep(self) -> int:
        return 0


def _unavailable(error: Exception) -> BusUnavailableError:
    """Without its text, which may quote credentials."""
    return BusUnavailableError(f"The store of large payloads does not serve us: {type(error).__name__}.")
