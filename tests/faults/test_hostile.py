"""Checkpoints that someone has made to do harm, each with digests that are right: refused, and nothing of them runs."""

import json
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esper.checkpoint import store
from esper.checkpoint.digests import bytes_digest, file_digest
from esper.checkpoint.manifest import FORMAT
from esper.contracts.errors import CheckpointError
from tests.checkpoint.test_tree import HOSTILE
from tests.faults.amount import amount
from tests.faults.operations import in_a_child
from tests.faults.states import two_generations

Change = Callable[[Path], None]
SECONDS = 60
MORE_BYTES = 3 * 2**30
RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen", "pickle.find_class", "exec")
"""What Python tells of when something is run."""


def manifest(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Another manifest, sealed anew."""

    def apply(folder: Path) -> None:
        told = json.loads((folder / "manifest.json").read_bytes().rpartition(b"\n")[0])
        seal_manifest(folder, json.dumps(_or(change(told), told)).encode())

    return apply


def _or(changed: Any, told: Any) -> Any:
    """What a change gave, or what it has changed in place."""
    return told if changed is None else changed


def seal_manifest(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text + b"\n" + bytes_digest(text))


def part(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Another list of tensors in the part that lies on disk, sealed anew."""

    def apply(folder: Path) -> None:
        raw = (folder / "apart-1").read_bytes()
        length = int.from_bytes(raw[-8:], "little")
        body, told = raw[: -8 - 32 - length], json.loads(raw[-8 - 32 - length : -8 - 32])
        text = json.dumps(_or(change(told), told)).encode()
        seal = bytes_digest(text)
        (folder / "apart-1").write_bytes(body + text + seal + len(text).to_bytes(8, "little"))
        manifest(lambda of: of["apart"].update({"apart-1": seal.decode()}))(folder)

    return apply


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Another header of the file of tensors, with its digest in the manifest."""

    def apply(folder: Path) -> None:
        raw = (folder / "tensors.safetensors").read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        told = json.loads(raw[8:end])
        text = json.dumps(_or(change(told), told)).encode()
        seal_tensors(folder, struct.pack("<Q", len(text)) + text + raw[end:])

    return apply


def seal_tensors(folder: Path, raw: bytes) -> None:
    (folder / "tensors.safetensors").write_bytes(raw)
    manifest(lambda told: told.update(file_digest=file_digest(folder / "tensors.safetensors")))(folder)


def replaced(name: str, how: Callable[[Path], None]) -> Change:
    """Something else in the place of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        how(folder / name)

    return apply


def first(entries: dict[str, list[Any]], index: int, value: Any) -> None:
    next(entry for entry in entries.values() if entry[1])[index] = value


def _named_often(told: dict[str, Any]) -> None:
    name = next(iter(told["tensors"]))
    for index in range(1_000_000):
        told["elsewhere"][str(index)] = ["tensors.safetensors", name]
        told["digests"][str(index)] = told["digests"][name]
        told["tensors"][str(index)] = told["tensors"][name]


def nested(depth: int) -> bytes:
    return b'{"format": %d, "structure": ' % FORMAT + b'{"list": [' * depth + b"]}" * depth + b"}"


NAMES = [
    "../older",
    "/etc/passwd",
    "..",
    ".",
    "",
    "apart-1/../../x",
    "apart-0",
    "apart-1\n",
    "apart-1\0",
    "manifest.json",
]
FILES = ["manifest.json", "tensors.safetensors", "apart-1"]
CASES: dict[str, Change] = {
    **{
        f"a structure: {name}": manifest(lambda told, one=one: told.update(structure=one))
        for name, one in HOSTILE.items()
    },
    **{
        f"a part named {name!r}": manifest(lambda told, name=name: told["apart"].update({name: "0" * 32}))
        for name in NAMES
    },
    **{
        f"a tensor in {name!r}": manifest(lambda told, name=name: told["elsewhere"].update(x=[name, "x"]))
        for name in NAMES
    },
    **{
        f"format {one!r}": manifest(lambda told, one=one: told.update(format=one))
        for one in (0, -1, 5, FORMAT + 1, 10**30, 10.0, True, "10", None, [10], {})
    },
    **{f"{name} is a pipe": replaced(name, os.mkfifo) for name in FILES},
    **{f"{name} is a folder": replaced(name, lambda path: path.mkdir()) for name in FILES},
    **{f"{name} is a link to itself": replaced(name, lambda path: path.symlink_to(path)) for name in FILES},
    **{f"{name} is a device": replaced(name, lambda path: path.symlink_to("/dev/zero")) for name in FILES},
    "a manifest that is a list": manifest(lambda told: [told]),
    "a manifest that is a number": manifest(lambda told: 10),
    "a manifest with nothing but a format": manifest(lambda told: {"format": FORMAT}),
    "a manifest that is nested deeply": lambda folder: seal_manifest(folder, nested(200_000)),
    "a manifest that is no JSON": lambda folder: seal_manifest(folder, b"{"),
    "a manifest with a long number": lambda folder: seal_manifest(folder, b'{"format": ' + b"9" * 10_000 + b"}"),
    "digests that are a list": manifest(lambda told: told.update(digests=[])),
    "digests that are numbers": manifest(lambda told: told.update(digests={"a": 1})),
    "no digest of a tensor": manifest(lambda told: told["digests"].popitem() and None),
    "a digest of an absent tensor": manifest(lambda told: told["digests"].update(x="0" * 32)),
    "parts that are a list": manifest(lambda told: told.update(apart=["apart-1"])),
    "places that are text": manifest(lambda told: told.update(elsewhere={"x": "ab"})),
    "a tensor that is elsewhere and nowhere": manifest(lambda told: told["elsewhere"].update(x=["apart-1", "x"])),
    "a part with a huge shape": part(lambda told: first(told["tensors"], 1, [2**40])),
    "a part with a shape that overflows": part(lambda told: first(told["tensors"], 1, [2**62, 2**62])),
    "a part with a negative shape": part(lambda told: first(told["tensors"], 1, [-1, -280])),
    "a part with a shape of text": part(lambda told: first(told["tensors"], 1, "ab")),
    "a part with a shape of lists": part(lambda told: first(told["tensors"], 1, [[1]])),
    "a part with a dtype that is a function": part(lambda told: first(told["tensors"], 0, "load")),
    "a part with no dtype": part(lambda told: first(told["tensors"], 0, None)),
    "a part that begins before itself": part(lambda told: first(told["tensors"], 2, -8)),
    "a part that begins behind itself": part(lambda told: first(told["tensors"], 2, 2**50)),
    "a part with a huge empty shape": part(lambda told: told["tensors"].update(x=["float32", [0, 2**70], 0, "0" * 32])),
    "a part with a quantised dtype": part(lambda told: first(told["tensors"], 0, "quint8")),
    "tensors that are named a million times": manifest(_named_often),
    "a part without tensors": part(lambda told: told.pop("tensors") and None),
    "a part that is a list": part(lambda told: []),
    "a part with a short entry": part(lambda told: told["tensors"].update(x=["float32"])),
    "a header with a huge shape": header(lambda told: next(iter(told.values())).update(shape=[2**60])),
    "a header with offsets that are outside": header(
        lambda told: next(iter(told.values())).update(data_offsets=[0, 2**50])
    ),
    "a header with an unknown dtype": header(lambda told: next(iter(told.values())).update(dtype="OBJECT")),
    "a header that is a list": header(lambda told: []),
    "a header that is longer than the file": lambda folder: seal_tensors(folder, struct.pack("<Q", 2**62) + b"{}"),
    "a header that is empty": lambda folder: seal_tensors(folder, b""),
    "a file of tensors that is a pickle": lambda folder: seal_tensors(folder, b"\x80\x04cos\nsystem\n(S'touch x'\ntR."),
}


REFUSED = r"is damaged: |has format |There is no checkpoint in |a structure that Esper does not write|Unknown kind"


def test_there_are_many():
    assert len(CASES) >= 60


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is run inside; a hook of Python stays for ever, so it is asked whether it is to hear."""
    heard: list[str] = []
    _LISTENERS.append(heard)
    signal.alarm(SECONDS)
    try:
        yield heard
    finally:
        signal.alarm(0)
        _LISTENERS.remove(heard)


_LISTENERS: list[list[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _LISTENERS and event.startswith(RUNS):
        _LISTENERS[-1].append(event)


sys.addaudithook(_hear)


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_nothing_runs(case, tmp_path):
    _, newer = two_generations(tmp_path)
    CASES[case](newer)
    with (
        watched() as heard,
        pytest.raises(CheckpointError, match=REFUSED),
    ):
        store.read(newer)
    assert heard == []


def test_what_runs_would_be_heard():
    """Negative control."""
    with watched() as heard:
        os.system("true")
    assert heard == ["os.system"]


JUNK = (
    None,
    True,
    0,
    -1,
    2**40,
    1e308,
    "",
    "x",
    "../x",
    [],
    {},
    [[]],
    {"list": []},
    {"tensor": "x"},
    "float32",
    "apart-1",
)


def mutated(value: Any, chance: random.Random) -> Any:
    """A JSON value of which one part is something else."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        kind = chance.random()
        copy = dict(value) if isinstance(value, dict) else list(value)
        if kind < 0.1:
            del copy[key]
        elif kind < 0.2 and isinstance(copy, list):
            copy.append(copy[key])
        elif kind < 0.2:
            copy[str(chance.choice(JUNK))] = copy[key]
        else:
            copy[key] = mutated(copy[key], chance)
        return copy
    return chance.choice(JUNK)


def fuzz(directory: Path, number: int) -> None:
    """Read what was changed at random; an error of another kind, a hang or too much memory ends the process."""
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MORE_BYTES
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + limit, in_use + limit))
    _, newer = two_generations(directory)
    files = {path.name: path.read_bytes() for path in newer.iterdir()}
    chance, refused = random.Random(0), 0
    for _ in range(number):
        for name, content in files.items():
            (newer / name).write_bytes(content)
        change = chance.choice((manifest, manifest, part, header))(lambda told: mutated(told, chance))
        change(newer)
        with watched() as heard:
            try:
                store.read(newer)
            except CheckpointError:
                refused += 1
        assert heard == []
    assert refused > number / 2


def test_what_was_changed_at_random_is_refused_or_harmless(tmp_path, record_property):
    number = amount(100_000)
    assert in_a_child(lambda: fuzz(tmp_path, number)) == 0
    record_property("faults", number)
