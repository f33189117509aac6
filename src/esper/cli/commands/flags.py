"""``esper flags``: who gets what, for people."""

import argparse
from dataclasses import dataclass
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand
from esper.contracts.errors import ConfigError

ACTIONS = {
    "list": "print every flag, its rule and what it switches",
    "set": "change one: set FLAG on, off or 25%%, and lists of models",
    "explain": "print which flags a model has, and why: explain MODEL_ID",
    "validate": "check a store",
}


@dataclass(frozen=True)
class FlagsCommand(Subcommand):
    """Look at a store of feature flags, or change it.

    Args:
        action: one of :data:`ACTIONS`.
        store: its path; None only explains what the environment says.
        name: of the flag to set.
        share: to set: on, off or a percentage; None leaves it.
        model_id: to explain.
        allow, block, forget: models to put on a list of the flag, or to take off both.
    """

    about = "feature flags: " + ", ".join(ACTIONS)
    takes = "one action, what it is about, and options only"

    action: str
    store: str | None
    name: str = ""
    share: str | None = None
    model_id: str = ""
    allow: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
        parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=told)
        parser.add_argument("about", metavar="FLAG|MODEL_ID", nargs="?", help="flag to set, or model to explain")
        parser.add_argument("share", metavar="SHARE", nargs="?", help="on, off, or a percentage of all models")
        parser.add_argument("--flags", metavar="FILE", help="the store, a flagd file; set makes it")
        for name, help_ in (
            ("allow", "on for this model, whatever the share"),
            ("block", "off for this model, whatever the share"),
            ("forget", "take this model off both lists"),
        ):
            parser.add_argument(f"--{name}", metavar="ID", action="append", default=[], help=help_)

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        action, store, about, share = (values[name] for name in ("action", "flags", "about", "share"))
        allow, block, forget = (tuple(values[name]) for name in ("allow", "block", "forget"))
        has_lists = bool(allow or block or forget)
        if store is None and action != "explain":
            raise ConfigError(f"'esper flags {action}' needs a store: --flags FILE.")
        if action == "set":
            if about is None or (share is None and not has_lists):
                raise ConfigError("Say which flag and what: 'esper flags set FLAG on|off|25%', or --allow, --block.")
            return cls(action, store, name=about, share=share, allow=allow, block=block, forget=forget)
        if surplus := share or (about if action != "explain" else None):
            raise ConfigError(f"'esper flags {action}' takes no {surplus!r}. See 'esper flags --help'.")
        if has_lists:
            raise ConfigError(f"--allow, --block and --forget are of 'esper flags set', not of {action!r}.")
        if action == "explain" and about is None:
            raise ConfigError("Say which model: 'esper flags explain MODEL_ID'.")
        return cls(action, store, model_id=about or "")

    def do(self) -> bool:
        from esper.cli import flag_words

        match self.action:
            case "list":
                flag_words.list_flags(self.store or "")
            case "set":
                flag_words.set_one(self.store or "", self.name, self.share, self.allow, self.block, self.forget)
            case "explain":
                flag_words.explain(self.store, self.model_id)
            case _:
                flag_words.validate(self.store or "")
        return True
