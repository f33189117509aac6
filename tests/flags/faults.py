"""What may become of a store of flags, as functions that do it to its path."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _with(**changes: Any) -> Callable[[Path], None]:
    """One flag with something else in it."""

    def spoil(path: Path) -> None:
        value = json.loads(path.read_bytes())
        value["flags"]["message_bus"] |= changes
        path.write_text(json.dumps(value))

    return spoil


def _text(data: bytes) -> Callable[[Path], None]:
    return lambda path: bool(path.write_bytes(data)) and None


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


FAULTS: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "emptied": _text(b""),
    "blank": _text(b" \n"),
    "half written": lambda path: os.truncate(path, path.stat().st_size // 2),
    "corrupt": lambda path: _text(path.read_bytes().replace(b":", b"\x00", 3))(path),
    "not UTF-8": _text(b'{"flags": {"\xff": 1}}'),
    "no object": _text(b"[1, 2]"),
    "no flags": _text(b"{}"),
    "flags of a wrong type": _text(b'{"flags": []}'),
    "nested deeply": _text(b'{"flags":' * 200_000),
    "huge": lambda path: os.truncate(path, 2**26),
    "a directory": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),
    "a link to nowhere": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a value of a wrong type": _with(variants={"on": "yes", "off": False}),
    "no such state": _with(state="on"),
    "a default that is no variant": _with(defaultVariant="maybe"),
    "a rule that is no object": _with(targeting=[]),
    "a rule that fails": _with(targeting={"no such operator": [1]}),
    "a rule of no variant": _with(targeting={"if": [True, "maybe"]}),
    "a rule nested deeply": _with(targeting={"!": json.loads("[" * 700 + "]" * 700)}),
    "a key that flagd does not know": _with(surprise=1),
    "evaluators that flagd cannot use": lambda path: (
        path.write_text(
            json.dumps({**json.loads(path.read_bytes()), "$evaluators": {"x": "\\q"}}).replace(
                '"on"', '{"$ref": "x"}', 1
            )
        )
        and None
    ),
}
