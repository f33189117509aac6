"""The secret with which a reader of a live page may send commands."""

import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path

from esper.contracts.errors import ConfigError

SHORTEST = 16


class Token:
    """A secret that is compared in constant time.

    Args:
        path: file that holds it, which nobody else may read.
        tell: called with a sentence when somebody comes with a wrong one, once.

    Raises:
        ConfigError: if there is no such file, others can read it, or what it holds is too short.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda text: None) -> None:
        try:
            mode, content = os.stat(path).st_mode, path.read_bytes()
        except OSError as error:
            raise ConfigError(f"The token file {path} cannot be read: {error.strerror}. {_HOW.format(path)}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"Others may use the token file {path}: forbid it with chmod 600 {path}.")
        self._secret, self._tell, self._is_told = content.strip(), tell, False
        if len(self._secret) < SHORTEST:
            raise ConfigError(f"The token in {path} has fewer than {SHORTEST} characters. {_HOW.format(path)}")

    def is_right(self, given: str) -> bool:
        """Whether it is the secret."""
        is_right = hmac.compare_digest(given.encode("utf-8", "replace"), self._secret)
        if not is_right and not self._is_told:
            self._is_told = True
            self._tell("Somebody came with a wrong token, and was refused; it is not said again.")
        return is_right


_HOW = "Make one: (umask 077; openssl rand -hex 32 > {})."
