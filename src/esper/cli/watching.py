"""``esper watch``."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from esper.cli.ending import until_told
from esper.contracts.errors import ConfigError
from esper.observability.live.directories import DirectoryRuns
from esper.observability.live.server import Asking, LiveServer
from esper.observability.live.tokens import Token


def watch_directories(directories: Sequence[Path], port: int, host: str) -> None:
    """Serve the runs in some directories, until interrupted or terminated.

    Raises:
        ConfigError: if one is none, the port is taken, or the web server is not installed.
    """
    server = LiveServer(DirectoryRuns(directories), port, host)
    try:
        with until_told() as ending:
            _say(", ".join(map(str, directories)), host, server.port)
            ending.wait()
    finally:
        server.close()


def watch_bus(url: str, port: int, host: str, token_file: Path | None) -> None:
    """Serve the runs on a bus, until interrupted or terminated.

    Raises:
        BusError: if there is no such bus, or its broker does not answer at the start.
        ConfigError: if the port is taken, the token is none, or a library is not installed.
    """
    try:
        from esper.observability.live.over_bus import BusRuns
        from esper.oona.environment import codec
        from esper.oona.url import open_bus, shown
    except ModuleNotFoundError as error:
        raise ConfigError(f"A bus needs {error.name}: pip install 'esper-morphogenetic[bus,watch]'.") from error
    tell = partial(print, flush=True)
    token = None if token_file is None else Token(token_file, tell)
    open_bus(url).close()
    runs = BusRuns(partial(open_bus, url), codec(os.environ), tell)
    server = LiveServer(runs, port, host, None if token is None else Asking(token, runs.send))
    try:
        with until_told() as ending:
            _say(shown(url), host, server.port)
            runs.follow(ending)
    finally:
        server.close()


def _say(what: str, host: str, port: int) -> None:
    named = f"[{host}]" if ":" in host else host
    print(f"{what} can be watched at http://{named}:{port}/ ; stop it with Ctrl-C", flush=True)
