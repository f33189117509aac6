"""``esper watch``: runs while they go on, as a page."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.cli.options import MAX_PORT
from esper.contracts.errors import ConfigError

PORT = 8321


@dataclass(frozen=True)
class WatchCommand(Subcommand):
    """Serve a page that follows runs, until interrupted.

    Args:
        directories: of runs, or of directories of runs.
        bus: URL of the bus that tells the runs instead; None reads directories.
        port: to serve it at; 0 takes a free one.
        host: address to listen at.
        token: file with the secret that commands must come with; None serves no commands.
    """

    about = "follow runs while they go on, as a page in a browser"
    takes = "run directories, or --bus URL"

    directories: tuple[Path, ...]
    bus: str | None
    port: int
    host: str
    token: Path | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        help_ = "run directory, or a directory of runs; those that begin later appear by themselves"
        parser.add_argument("directories", metavar="DIR", type=Path, nargs="*", help=help_)
        parser.add_argument("--bus", metavar="URL", help="the runs on a message bus instead, as of esper run")
        help_ = f"where to serve the page; 0 takes a free port (default: {PORT})"
        parser.add_argument("--port", metavar="N", type=int, default=PORT, help=help_)
        help_ = "address to listen at; whoever reaches it may read (default: 127.0.0.1)"
        parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help=help_)
        help_ = "with --bus: file with a secret, whose owner may send commands from the page (default: no commands)"
        parser.add_argument("--token", metavar="FILE", type=Path, help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        directories, bus, port, token = values["directories"], values["bus"], values["port"], values["token"]
        if bool(directories) == bool(bus):
            raise ConfigError("'esper watch' needs run directories or --bus URL, one of both: esper watch runs")
        if not 0 <= port <= MAX_PORT:
            raise ConfigError(f"--port must be 0 to {MAX_PORT}, not {port}.")
        if token is not None and bus is None:
            raise ConfigError("--token is for commands, which go over a bus: give --bus URL, or leave --token out.")
        return cls(tuple(directories), bus, port, values["host"], token)

    def do(self) -> bool:
        from esper.cli.watching import watch_bus, watch_directories

        if self.bus is None:
            watch_directories(self.directories, self.port, self.host)
        else:
            watch_bus(self.bus, self.port, self.host, self.token)
        return True
