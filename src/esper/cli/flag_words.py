"""``esper flags``: prints a store of feature flags, and changes it."""

import os
from collections.abc import Sequence
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.contracts.flags import FLAGS
from esper.flags.document import Document
from esper.flags.edit import read, set_flag
from esper.flags.environment import shares, variable_of
from esper.flags.shares import shown
from esper.flags.store import resolve


def list_flags(store: str) -> None:
    """Print every flag with its rule, what the environment says above it, and what it switches."""
    document, above = read(store), shares(os.environ)
    for name, meaning in FLAGS.items():
        told = f"; {variable_of(name)} says {shown(above[name])}" if name in above else ""
        print(f"{name:<22}{_rule(document, name)}{told}\n{'':<22}{meaning}")
    if document.complaint is not None:
        print(document.complaint)


def set_one(
    store: str, name: str, share: str | None, allow: Sequence[str], block: Sequence[str], forget: Sequence[str]
) -> None:
    """Change one flag and print its rule as it stands now."""
    document = set_flag(store, name, share, allow=allow, block=block, forget=forget)
    print(f"{name}: {_rule(document, name)}")


def explain(store: str | None, model_id: str) -> None:
    """Print which flags a model has, and what decided."""
    if store is not None:
        read(store)  # a run takes the last good one instead; whoever asks here wants to know
    for name, flag in resolve(model_id, store).values.items():
        print(f"{name:<22}{'on' if flag.is_on else 'off':<5}{flag.reason}")


def validate(store: str) -> None:
    """Say that a store is right.

    Raises:
        ConfigError: if it cannot be used, flagd refuses it, or it names a flag that there is not.
    """
    from esper.flags.flagd import Evaluator

    document = read(store)
    if document.complaint is not None:
        raise ConfigError(f"The store of flags {store} is not right. {document.complaint}")
    try:
        Evaluator(f"esper.flags/validate {Path(store).absolute()}").load(document.value, document.rules)
    except ConfigError as error:
        raise ConfigError(f"The store of flags {store} cannot be used. {error}") from None
    print(f"{store}: {len(document.rules)} of {len(FLAGS)} flags are set, the others are off.")


def _rule(document: Document, name: str) -> str:
    if name not in document.rules:
        return "off, as it is not in the store"
    return str(document.rules[name] or "a rule of its own shape")
