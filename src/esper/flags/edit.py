"""Changes the store: one writer at a time, and as a whole or not at all."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.contracts.flags import check_name
from esper.flags import last_good
from esper.flags.document import Document, parse, text_of
from esper.flags.environment import variable_of
from esper.flags.lock import held
from esper.flags.rule import DISABLED, Rule
from esper.flags.shares import parse as parse_share
from esper.whole_file import write_whole

PATIENCE_S = 10.0


def set_flag(
    path: str | Path,
    name: str,
    share: str | None = None,
    *,
    allow: Sequence[str] = (),
    block: Sequence[str] = (),
    forget: Sequence[str] = (),
) -> Document:
    """Change one flag in a store, which is made if it does not exist. Other flags stay as they are.

    Args:
        path: of the store.
        name: of the flag.
        share: ``on``, ``off``, or a percentage as ``25%``; None leaves it. ``off`` switches off for all, whoever is
            allowed; ``0%`` leaves it on for those who are.
        allow: ids of models for which it is on whatever the share.
        block: ids of models for which it is off.
        forget: ids that are taken off both lists, before others are put on them.

    Returns:
        The store as it stands now.

    Raises:
        ConfigError: if there is no such flag, a value is wrong, an id would be on both lists, the store cannot be read
            or written, or another writer does not end; the store is unchanged then.
    """
    check_name(name)
    number = None if share is None else parse_share(share, "A share")
    is_off = number == 0 and share is not None and not share.strip().endswith("%")
    path = Path(path).resolve()  # what a link shows to is replaced, not the link
    try:
        with held(path.with_name(f".{path.name}.lock"), f"the store of flags {path}", PATIENCE_S):
            before = _before(path, name, is_off)
            rule = before.rules.get(name, Rule())
            if rule is None:
                after = _without_its_rule(name, path, is_off, bool(allow or block or forget))
            else:
                after = _changed(rule, number, is_off, allow, block, forget).to_flagd()
            flags = {**before.value["flags"], name: {**before.value["flags"].get(name, {}), **after}}
            data = text_of({**before.value, "flags": flags}).encode()
            write_whole(path, data)
            with suppress(OSError):  # whoever reads it next tries again
                last_good.keep(path, data)
    except OSError as error:
        raise ConfigError(f"The store of flags {path} cannot be written: {error.strerror}.") from None
    return parse(data)


def read(path: str | Path) -> Document:
    """A store that is to be shown or changed.

    Raises:
        ConfigError: if it cannot be read, or is none.
    """
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"The store of flags {path} cannot be read: {error.strerror}.") from None
    except ConfigError as error:
        raise ConfigError(f"The store of flags {path} cannot be used. {error}") from None


def _before(path: Path, name: str, is_off: bool) -> Document:
    """The store as it stands. Whoever cannot switch off by a store that is damaged is told what switches off."""
    if not path.exists():
        return parse(b'{"flags": {}}')
    try:
        return read(path)
    except ConfigError as error:
        if not is_off:
            raise
        raise ConfigError(
            f"{error} Runs may go by its last good copy: set {variable_of(name)}=0 in their environment, which "
            f"switches {name} off whatever the store says, or mend the file and try again."
        ) from None


def _changed(
    rule: Rule, share: int | None, is_off: bool, allow: Sequence[str], block: Sequence[str], forget: Sequence[str]
) -> Rule:
    if is_off:
        rule = replace(rule, is_switched_off=True)
    elif share is not None:
        rule = replace(rule, share=share, is_switched_off=False)
    lists = ([one for one in ids if one not in forget] for ids in (rule.allow, rule.block))
    allowed, blocked = (tuple(dict.fromkeys([*ids, *more])) for ids, more in zip(lists, (allow, block), strict=True))
    return replace(rule, allow=allowed, block=blocked)


def _without_its_rule(name: str, path: Path, is_off: bool, has_lists: bool) -> dict[str, Any]:
    """All that can be changed of a flag whose rule is of another shape than ours: that it is off for all."""
    if not is_off or has_lists:
        raise ConfigError(
            f"The rule of {name!r} in {path} is not of the shape that Esper writes, so all that can be set is off. "
            "Change the file itself."
        )
    return {"state": DISABLED}
