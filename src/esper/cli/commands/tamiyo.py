"""``esper tamiyo serve``: the controller as a process of its own."""

import argparse
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand


@dataclass(frozen=True)
class TamiyoCommand(Subcommand):
    """Decide for all runs on a bus that ask, until interrupted.

    Args:
        bus: its URL.
        policy: who decides.
        traces: URL of a collector of traces, or None.
        log_format: what to print.
        health: ``ADDRESS:PORT`` at which it tells whether it is well, or None.
    """

    about = "serve: decide for runs elsewhere, those with --policy remote, over a message bus"
    takes = "serve and options only"

    bus: str
    policy: str
    traces: str | None
    log_format: str
    health: str | None

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", metavar="serve", choices=["serve"], help="decide until interrupted")
        parser.add_argument("--bus", metavar="URL", required=True, help="of the message bus, as of esper run")
        help_ = "who decides (default: heuristic)"
        parser.add_argument("--policy", metavar="NAME", default="heuristic", help=help_)
        help_ = "collector that takes traces, as of esper run (default: none)"
        parser.add_argument("--traces", metavar="URL", help=help_)
        help_ = "what to print: text, or one JSON object a line (default: text)"
        parser.add_argument("--log-format", metavar="text|json", choices=["text", "json"], default="text", help=help_)
        help_ = "where to answer /livez and /readyz, such as 127.0.0.1:8080; port 0 takes a free one (default: nowhere)"
        parser.add_argument("--health", metavar="ADDRESS:PORT", help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        if values["health"] is not None:
            from esper.cli.health import address  # a server's libraries are not loaded for other commands

            address(values["health"])
        return cls(**{name: values[name] for name in ("bus", "policy", "traces", "log_format", "health")})

    def do(self) -> bool:
        from esper.cli.serving import serve

        serve(self.bus, self.policy, self.traces, self.log_format, self.health)
        return True
