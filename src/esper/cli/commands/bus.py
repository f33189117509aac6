"""``esper bus``: what is on a message bus, for people."""

import argparse
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

ACTIONS = {
    "topics": "list topics, and how many messages each holds",
    "tail": "print messages as they come, one JSON object a line",
    "dead-letters": "print what was rejected in a topic, and why",
    "requeue": "publish dead letters of a topic again: those of --id, or all",
}


@dataclass(frozen=True)
class BusCommand(Subcommand):
    """Look at a bus.

    Args:
        action: one of :data:`ACTIONS`.
        bus: its URL.
        topic: which; None means all, where that can be.
        oldest: whether ``tail`` begins with what is held.
        count: messages after which ``tail`` ends; None goes on.
        ids: of the dead letters to requeue; none means all.
    """

    about = "look at a message bus: " + ", ".join(ACTIONS)
    takes = "one action and options only"

    action: str
    bus: str
    topic: str | None
    oldest: bool
    count: int | None
    ids: tuple[str, ...]

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
        parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=told)
        parser.add_argument("--bus", metavar="URL", required=True, help="of the message bus, as of esper run")
        parser.add_argument("--topic", metavar="TOPIC", help="which topic (default: all, for tail)")
        parser.add_argument("--oldest", action="store_true", help="tail begins with what the topics hold")
        parser.add_argument("--count", metavar="N", type=int, help="tail ends after so many messages")
        parser.add_argument("--id", metavar="ID", dest="ids", action="append", default=[], help="of a dead letter")

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        action, topic, count = values["action"], values["topic"], values["count"]
        if action in ("dead-letters", "requeue") and topic is None:
            raise ConfigError(f"'esper bus {action}' needs a topic: --topic TOPIC. 'esper bus topics' lists them.")
        if count is not None and count < 1:
            raise ConfigError(f"--count must be at least 1, not {count}.")
        return cls(action, values["bus"], topic, values["oldest"], count, tuple(values["ids"]))

    def do(self) -> bool:
        from esper.cli.looking import dead_letters, requeue, tail, topics

        match self.action:
            case "topics":
                topics(self.bus)
            case "tail":
                tail(self.bus, self.topic, oldest=self.oldest, count=self.count)
            case "dead-letters":
                dead_letters(self.bus, self.topic or "")
            case _:
                requeue(self.bus, self.topic or "", self.ids)
        return True
