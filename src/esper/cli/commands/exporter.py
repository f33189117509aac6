"""``esper exporter``: the metrics of all runs on a message bus, for Prometheus."""

import argparse
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.cli.options import MAX_PORT
from esper.contracts.errors import ConfigError

PORT = 9464


@dataclass(frozen=True)
class ExporterCommand(Subcommand):
    """Serve the metrics of all runs on a bus, until interrupted.

    Args:
        bus: its URL.
        port: to serve them at; 0 takes a free one.
        host: address to listen at.
    """

    about = "serve the metrics of all runs on a message bus, for Prometheus"

    bus: str
    port: int
    host: str

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--bus", metavar="URL", required=True, help="of the message bus, as of esper run")
        help_ = f"where to serve /metrics; 0 takes a free port (default: {PORT})"
        parser.add_argument("--port", metavar="N", type=int, default=PORT, help=help_)
        help_ = "address to listen at; what it serves has no password (default: 127.0.0.1)"
        parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        if not 0 <= values["port"] <= MAX_PORT:
            raise ConfigError(f"--port must be 0 to {MAX_PORT}, not {values['port']}.")
        return cls(values["bus"], values["port"], values["host"])

    def do(self) -> bool:
        try:
            from esper.cli.exporting import export
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"esper exporter needs {error.name}: pip install 'esper-morphogenetic[bus,metrics]'."
            ) from error
        export(self.bus, self.port, self.host)
        return True
