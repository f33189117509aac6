"""A folder of the user's own texts: the next byte, with whole files held out."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from esper.contracts.errors import DataError
from esper.tasks.gpt import GPTHost
from esper.tasks.task import Task
from esper.tasks.windows import LEAST_JUDGED, spread, windows

CONTEXT = 256
JUDGED_SHARE = 0.05
SIDES = 3
SEPARATOR = b"\0"
"""Between two files of a side. No text holds it: a file that does is taken for binary."""

LABELS = tuple(chr(byte) if 32 <= byte < 127 else f"0x{byte:02X}" for byte in range(256))
"""Of all bytes: printable ASCII by itself, others by their value."""


def folder(path: str | Path, seed: int, context: int | None = None) -> Task:
    """Predict the next byte of the files below a folder, whatever their encoding.

    Hidden files and folders, links to folders, empty files and binary ones (with a zero byte) are not read; of files
    with the same content one is. Whole files are dealt by ``seed``: 5 % of the bytes are held out and 5 % are for the
    test; a file larger than that is there to learn from. The files of a side stand one after the other, a zero byte
    between them, and windows go across, as language models read them. They do not overlap, and are judged as those of
    :func:`esper.tasks.text.text`. The host is a GPT of 4 blocks.

    Args:
        path: of the folder.
        seed: deals the files.
        context: bytes of a window; None takes 256.

    Raises:
        DataError: if a file cannot be read, or there are too few, or too little text.
    """
    path = Path(path)
    length = context or CONTEXT
    texts, left_out = _read(path)
    total = sum(map(len, texts))
    sides = [_joined([texts[index] for index in side]) for side in _dealt([len(text) for text in texts], seed)]
    del texts
    judged = min(len(side) - 1 for side in sides[1:])
    if judged // length < LEAST_JUDGED:
        shorter = judged // LEAST_JUDGED
        instead = f", or shorter windows: --host-settings context={shorter}" if shorter > 1 else ""
        raise DataError(
            f"{path} holds {total:,} bytes of text, which leaves {judged // length} windows of {length} bytes to judge "
            f"by; {LEAST_JUDGED} are needed. Give more text in more files{instead}."
        )
    train, *others = (windows(side, length) for side in sides)
    (held_out, groups), (test, test_groups) = map(spread, others)
    learned, kept, tested = (f"{len(side):,}" for side in sides)
    return Task(
        name=path.resolve().name or "text",
        train=train,
        held_out=held_out,
        test=test,
        make_host=GPTHost(vocabulary=len(LABELS), context=length),
        labels=LABELS,
        shape=(length,),
        groups=groups,
        test_groups=test_groups,
        told=(f"whole files: {learned} bytes to learn from, {kept} held out, {tested} for the test", *left_out),
        tokens="bytes",
    )


def _read(path: Path) -> tuple[list[bytes], list[str]]:
    """The texts, in the order of their paths, and what was left out in words."""
    texts: dict[bytes, bytes] = {}
    binary = copies = 0
    first = path
    for file in _files(path):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}. Allow it, or move it out of {path}.") from error
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if SEPARATOR in content:
            binary += 1
        elif digest in texts:
            copies += 1
        elif content:
            first = file if not texts else first
            texts[digest] = content
    if not texts:
        raise DataError(
            f"There is no text below {path}; hidden, empty and binary files are not read. Name a folder of texts."
        )
    if len(texts) == 1:
        raise DataError(
            f"Below {path} there is one text only, and whole files are held out. Take the file itself, text:{first}, "
            f"or a folder with at least {SIDES}."
        )
    if len(texts) < SIDES:
        raise DataError(
            f"Below {path} there are {len(texts)} texts, and {SIDES} are needed: to learn from, held out, and for the "
            "test. Add others, or part one."
        )
    found = {"binary file": binary, "copie" if copies > 1 else "copy": copies}
    told = " and ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in found.items() if count)
    return list(texts.values()), [f"left out: {told}"] if told else []


def _files(path: Path) -> Iterator[Path]:
    """All regular files below a folder that are not hidden, in the order of their paths."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Allow it, or move it out of {path}.")

    found = []
    for parent, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return (file for file in sorted(found) if file.is_file())


def _dealt(sizes: Sequence[int], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Indices to learn from, held out, and for the test. A side that would be empty gets the smallest one."""
    room = [JUDGED_SHARE * sum(sizes)] * 2
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist():
        side = next((side for side in (0, 1) if sizes[index] <= room[side]), None)
        sides[0 if side is None else side + 1].append(index)
        if side is not None:
            room[side] -= sizes[index]
    for judged in sides[1:]:
        if not judged:
            smallest = min(sides[0], key=lambda index: sizes[index])
            sides[0].remove(smallest)
            judged.append(smallest)
    return sides


def _joined(texts: Sequence[bytes]) -> Tensor:
    """One after the other, uint8 ``[bytes]``."""
    joined = bytearray()
    for text in texts:
        joined += SEPARATOR if joined else b""
        joined += text
    return torch.frombuffer(joined, dtype=torch.uint8)
