"""The manifest of a generation: what its files hold, and their digests. Nothing of one that is read is trusted."""

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from esper.checkpoint.digests import bytes_digest
from esper.contracts.errors import CheckpointError

FORMAT = 11
"""Of what is stored; raised by every change after which older versions cannot read it, or older checkpoints not fit."""

READABLE = (6, 7, 8, 9, 10, 11)
"""Formats that can be gone on from. In 6 every tensor is in the first file; before 10 its digest is another."""

NAME = "manifest.json"
TENSORS = "tensors.safetensors"
PART = re.compile(r"apart-[1-9][0-9]*")
"""What the files of parts are called: nothing that could lead out of the folder."""

MOST_BYTES = 2**28
"""Of a manifest."""


class DamageError(ValueError):
    """A generation is not what was written."""


@dataclass
class Manifest:
    """What a generation's files hold.

    Args:
        format: in which it was written.
        generation: its number.
        structure: of the state, as :func:`esper.checkpoint.tree.flatten` gives it.
        digests: of every tensor, by its name.
        elsewhere: file and name of tensors whose bytes are stored under another name.
        file_digest: of the file of tensors.
        apart: what tells the state of every part, by the name of its file.
        tensors: dtype and shape of every tensor.
    """

    format: int
    structure: Any
    digests: dict[str, str]
    file_digest: str
    elsewhere: dict[str, list[str]] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    generation: int = 0
    tensors: dict[str, list[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Two lines: the manifest, and its digest."""
        text = json.dumps(vars(self)).encode()
        return text + b"\n" + bytes_digest(text)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a generation.

        Raises:
            CheckpointError: if it has a format that this version does not read.
            OSError, ValueError: if it is not what was written.
        """
        path = regular(folder / NAME)
        if path.stat().st_size > MOST_BYTES:
            raise DamageError(f"{NAME} has more than {MOST_BYTES} bytes")
        text, _, own_digest = path.read_bytes().rpartition(b"\n")
        if bytes_digest(text) != own_digest:
            raise DamageError("the manifest does not match its digest")
        try:
            told = json.loads(text)
        except RecursionError as error:
            raise DamageError("the manifest is nested too deeply") from error
        if not isinstance(told, dict) or not isinstance(told.get("format"), int):
            raise DamageError("the manifest tells no format")
        if told["format"] not in READABLE:
            raise CheckpointError(
                f"{folder} has format {told['format']}; this version of Esper reads "
                f"{', '.join(map(str, READABLE[:-1]))} and {FORMAT}. Go on with the version that wrote it, or start "
                "anew."
            )
        if absent := [name for name in ("structure", "digests", "file_digest") if name not in told]:
            raise DamageError(f"the manifest tells no {absent[0]}")
        return cls(**{name: told[name] for name in cls.__dataclass_fields__ if name in told})._checked()

    def _checked(self) -> Self:
        """Itself, if all of it but the structure is what the reader goes by."""
        named = [self.digests, self.apart]
        if not all(isinstance(one, dict) and all(isinstance(value, str) for value in one.values()) for one in named):
            raise DamageError("the manifest does not tell digests")
        if strange := [name for name in self.apart if not PART.fullmatch(name)]:
            raise DamageError(f"{strange[0]!r} is no name of a part")
        if not isinstance(self.tensors, dict) or (self.format >= 10 and self.tensors.keys() != self.digests.keys()):
            raise DamageError("the manifest does not tell dtypes and shapes")
        files = {TENSORS, *self.apart}
        if not isinstance(self.elsewhere, dict) or not all(_is_place(one, files) for one in self.elsewhere.values()):
            raise DamageError("the manifest names a tensor in a file that is none of the generation's")
        return self


def regular(path: Path) -> Path:
    """A path, if it is a file, of which reading comes to an end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamageError(f"{path.name} is no regular file")
    return path


def _is_place(place: Any, files: set[str]) -> bool:
    is_pair = isinstance(place, list) and len(place) == 2 and all(isinstance(one, str) for one in place)
    return is_pair and place[0] in files
