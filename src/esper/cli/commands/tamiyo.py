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
    """

    about = "serve: decide for runs elsewhere, those with --policy remote, over a message bus"
    takes = "serve and options only"

    bus: str
    policy: str

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", metavar="serve", choices=["serve"], help="decide until interrupted")
        parser.add_argument("--bus", metavar="URL", required=True, help="of the message bus, as of esper run")
        help_ = "who decides (default: heuristic)"
        parser.add_argument("--policy", metavar="NAME", default="heuristic", help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        return cls(values["bus"], values["policy"])

    def do(self) -> bool:
        from esper.cli.serving import serve

        serve(self.bus, self.policy)
        return True
