"""``esper tamiyo``: the controller as a process of its own, and how it learns."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

ACTIONS = {
    "serve": "decide for runs elsewhere, those with --policy remote, until interrupted",
    "collect": "train drawn tasks again and again, each time with another graft tried, and keep what became of it",
    "train": "train a controller from what was collected",
    "improve": "let it go on learning by what its own choices lead to",
    "card": "print what weights say of themselves: card FILE",
}
OF = {
    "serve": ("bus", "policy", "traces", "log_format", "health"),
    "collect": ("records", "tasks", "first", "episodes", "workers", "seconds", "guide"),
    "train": ("records", "output", "learns", "without_curves", "steps", "seed", "curves", "threads"),
    "improve": ("weights", "output", "updates", "tasks", "first", "workers", "seconds", "seed", "tensorboard"),
    "card": ("file",),
}
"""Options of each action."""

DEFAULTS: dict[str, Any] = {
    **{"policy": "heuristic", "log_format": "text"},
    **{"tasks": 100, "first": 0, "episodes": 12, "workers": 1},
    **{"learns": "judgement", "without_curves": False},
    **{"updates": 100, "tensorboard": False},
    **{"steps": 800, "seed": 0, "threads": 1},
}
NEEDED = {
    "serve": ("bus",),
    "collect": ("records",),
    "train": ("records", "output"),
    "improve": ("output",),
    "card": ("file",),
}


@dataclass(frozen=True)
class TamiyoCommand(Subcommand):
    """Decide for other runs, or teach a controller.

    Args:
        action: one of :data:`ACTIONS`.
        options: of it, by the names in :data:`OF`.
    """

    about = "the controller: " + ", ".join(ACTIONS)
    takes = "one action and options only"

    action: str
    options: Mapping[str, Any]

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
        parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=told)
        parser.add_argument("file", metavar="FILE", nargs="?", help="card: the weights")
        add = parser.add_argument
        add("--bus", metavar="URL", help="serve: the message bus, as of esper run")
        add("--policy", metavar="NAME", help="serve: who decides (default: heuristic)")
        add("--traces", metavar="URL", help="serve: collector that takes traces, as of esper run (default: none)")
        help_ = "serve: what to print, text or one JSON object a line (default: text)"
        add("--log-format", metavar="text|json", choices=["text", "json"], help=help_)
        help_ = "serve: where to answer /livez and /readyz, such as 127.0.0.1:8080; port 0 takes a free one"
        add("--health", metavar="ADDRESS:PORT", help=f"{help_} (default: nowhere)")
        add("--records", metavar="DIR", action="append", help="collect: where to; train: where from, any number")
        add("--tasks", metavar="N", type=int, help="collect, improve: so many (default: 100)")
        add("--first", metavar="SEED", type=int, help="seed of the first task; the others follow (default: 0)")
        add("--episodes", metavar="N", type=int, help="collect: runs of a task with a graft (default: 12)")
        add("--workers", metavar="N", type=int, help="processes, each with one thread (default: 1)")
        add(
            "--seconds",
            metavar="S",
            type=float,
            help="collect: end after so many; improve: with the update under way (default: never)",
        )
        help_ = (
            "collect: weights by which half of what is tried is chosen, what is likely to be adopted (default: none)"
        )
        add("--guide", metavar="FILE", help=help_)
        add("--output", metavar="FILE", help="train: the .safetensors file of the weights; improve: a folder")
        help_ = "train: to judge, or to do what the heuristic does (default: judgement)"
        add("--learns", metavar="judgement|imitation", choices=["judgement", "imitation"], help=help_)
        help_ = "train: blind to learning curves, to see what they are worth"
        add("--without-curves", action="store_true", default=None, help=help_)
        add("--steps", metavar="N", type=int, help="train: of each network (default: 800)")
        add("--seed", metavar="N", type=int, help="of first weights, and of all chance (default: 0)")
        help_ = "improve: weights to begin with (default: new ones, which know nothing)"
        add("--from", metavar="FILE", dest="weights", help=help_)
        add("--updates", metavar="N", type=int, help="improve: in all (default: 100)")
        add("--tensorboard", action="store_true", default=None, help="improve: also write for TensorBoard")
        add("--curves", metavar="FILE", help="train: losses by step, as JSON lines (default: none)")
        add("--threads", metavar="N", type=int, help="train: of torch (default: 1)")

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        action = values.pop("action")
        given = {name: value for name, value in values.items() if value is not None}
        for name in given:
            if name not in OF[action] and any(name in those for those in OF.values()):
                owner = next(one for one, those in OF.items() if name in those)
                shown = {"file": "FILE", "weights": "--from"}.get(name, "--" + name.replace("_", "-"))
                raise ConfigError(f"{shown} is of 'esper tamiyo {owner}', not of {action!r}.")
        for name in NEEDED[action]:
            if name not in given:
                shown = "FILE" if name == "file" else "--" + name
                raise ConfigError(f"'esper tamiyo {action}' needs {shown}. See 'esper tamiyo --help'.")
        if action == "collect" and len(given["records"]) > 1:
            raise ConfigError("'esper tamiyo collect' fills one folder: name --records once.")
        for name in ("tasks", "episodes", "workers", "steps", "threads", "updates"):
            if given.get(name, 1) < 1:
                raise ConfigError(f"--{name} must be at least 1, not {given[name]}.")
        for name in ("first", "seed"):
            if given.get(name, 0) < 0:
                raise ConfigError(f"--{name} must be at least 0, not {given[name]}.")
        if action == "serve" and "health" in given:
            from esper.cli.health import address  # a server's libraries are not loaded for other commands

            address(given["health"])
        return cls(action, {name: given.get(name, DEFAULTS.get(name)) for name in OF[action]})

    def do(self) -> bool:
        if self.action == "serve":
            from esper.cli.serving import serve

            serve(*self.options.values())
            return True
        from esper.cli import teaching

        act: Callable[..., None] = getattr(teaching, self.action)
        act(**self.options)
        return True
