"""Which flags are on for a model, by store and environment."""

import os
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.contracts.flags import FLAGS, Flags
from esper.flags import last_good
from esper.flags.deciding import Deciding
from esper.flags.document import MOST_BYTES, Document, parse
from esper.flags.environment import shares
from esper.flags.reading import Reader

LOOK_EVERY_S = 1.0
MOST_CACHED = 100_000


def resolve(model_id: str, path: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Flags:
    """The flags of one model. Called once, before its run begins.

    Args:
        model_id: whose.
        path: of the store, a flagd file; None has none.
        environment: with ``ESPER_FLAG_<NAME>``.

    Returns:
        All flags. Without a store those that the environment does not name are not in play: on, as without flags.

    Raises:
        ConfigError: if the id is empty or the environment says what is no flag or value. A store that cannot be used
            never raises: it is warned of, and the last good one counts, or all that it would have told is off.
    """
    return FlagStore(path, environment).resolve(model_id)


class FlagStore:
    """Resolves the flags of many models, and sees changes of its file while it lives. Any thread may ask.

    Args:
        path: of the store, a flagd file; None has none.
        environment: read once, here.
        look_every_s: seconds for which what was read counts before the file is looked at again.
        patience_s: seconds to wait for a file that does not answer, and for its copy likewise.

    Raises:
        ConfigError: if no file can have this path, the environment says what is no flag or value, or the extra
            ``flags`` is not installed.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        environment: Mapping[str, str] = os.environ,
        *,
        look_every_s: float = LOOK_EVERY_S,
        patience_s: float = 2.0,
    ) -> None:
        if path is not None and "\0" in str(path):
            raise ConfigError(f"No file can be called {str(path)!r}. Name the store of flags.")
        self._path = None if path is None else Path(path).absolute()
        self._look_every_s = look_every_s
        self._next_look_s = float("-inf")  # of time.monotonic()
        self._lock = threading.Lock()
        self._cached: dict[str, Flags] = {}
        self._deciding = Deciding(shares(environment), None if self._path is None else self._path.name)
        if self._path is not None:
            self._reader = Reader(self._path, patience_s, MOST_BYTES + 1)
            self._copy = last_good.reader(self._path, patience_s)
        self._data: bytes | None = None
        self._troubles: set[str] = set()

    def resolve(self, model_id: str) -> Flags:
        """The flags of one model, as the store stands now.

        Raises:
            ConfigError: if the id is empty or no text.
        """
        if not isinstance(model_id, str) or not model_id.strip():
            raise ConfigError(f"A model id must be a text that is not empty, not {model_id!r}.")
        if time.monotonic() < self._next_look_s and (known := self._cached.get(model_id)) is not None:
            return known
        with self._lock:
            if time.monotonic() >= self._next_look_s:
                self._look()
                self._next_look_s = time.monotonic() + self._look_every_s
            if model_id not in self._cached:
                if len(self._cached) >= MOST_CACHED:
                    self._cached = {}
                values = {name: self._deciding.flag(name, model_id) for name in FLAGS}
                self._cached[model_id] = Flags(model_id, values)
            return self._cached[model_id]

    def _look(self) -> None:
        """Take on the file if it has changed. If it cannot be used, what was known stays, or else what was kept."""
        if self._path is None:
            return
        try:
            data = self._reader.read()
            if data == self._data:
                return
            document = self._taken_on(data)
        except (OSError, ConfigError) as error:
            self._data = None
            self._doubt(error)
            return
        self._data, self._cached = data, {}
        self._deciding.doubt = ""
        self._troubles.discard("unusable")
        if document.complaint is not None:
            self._warn(document.complaint, f"The store of flags {self._path}: {document.complaint}")
        self._keep(data)

    def _taken_on(self, data: bytes) -> Document:
        document = parse(data)
        self._deciding.load(document)
        return document

    def _doubt(self, error: Exception) -> None:
        assert self._path is not None
        if self._deciding.document is None and (kept := last_good.read(self._copy)) is not None:
            with suppress(ConfigError):  # of another version of Esper
                self._taken_on(kept)
        is_known = self._deciding.document is not None
        doubt = " as it last was" if is_known else " (which cannot be used)"
        if doubt != self._deciding.doubt:
            self._deciding.doubt, self._cached = doubt, {}
        counts = "What it last said counts." if is_known else "Every flag that the environment does not set is off."
        self._warn("unusable", f"The store of flags {self._path} cannot be used: {_said(error)} {counts}")

    def _keep(self, data: bytes) -> None:
        assert self._path is not None
        try:
            if last_good.read(self._copy) != data:
                last_good.keep(self._path, data)
        except OSError as error:
            text = f"No copy of the store of flags {self._path} can be kept beside it: {error}. Its flags count."
            self._warn("copy", text)
        else:
            self._troubles.discard("copy")

    def _warn(self, about: str, text: str) -> None:
        """Once until it is mended."""
        if about not in self._troubles:
            self._troubles.add(about)
            warnings.warn(text, RuntimeWarning, stacklevel=4)


def _said(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)  # the path is told already
    return text if text.endswith(".") else f"{text}."
