"""Whatever happens to the bytes of a checkpoint: it is seen, and the generation before takes its place."""

import io
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esper.checkpoint import store
from esper.contracts.errors import CheckpointError
from tests.faults.amount import amount
from tests.faults.states import NEWER, OLDER, seal, seal_of, state, two_generations
from tests.tree_digest import tree_digest

PAGE = 256
READERS = (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
"""What torch's reader may raise."""
Files = dict[str, bytes]


def flipped(files: Files, older: Files, chance: random.Random) -> Files:
    name = chance.choice(sorted(files))
    raw = bytearray(files[name])
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return {name: bytes(raw)}


def truncated(files: Files, older: Files, chance: random.Random) -> Files:
    name = chance.choice(sorted(files))
    return {name: files[name][: chance.randrange(len(files[name]))]}


def zeroed(files: Files, older: Files, chance: random.Random) -> Files:
    name = chance.choice(sorted(files))
    raw = bytearray(files[name])
    begin = chance.randrange(len(raw))
    raw[begin : begin + PAGE] = bytes(len(raw[begin : begin + PAGE]))
    return {name: bytes(raw)}


def spliced(files: Files, older: Files, chance: random.Random) -> Files:
    """Some files of the older generation, or the end of one."""
    names = chance.sample(sorted(files), chance.randrange(1, len(files)))
    cut = 0 if len(names) > 1 else chance.choice([0, chance.randrange(len(files[names[0]]))])
    return {name: files[name][:cut] + older[name][cut:] for name in names}


def swapped(files: Files, older: Files, chance: random.Random) -> Files:
    one, other = chance.sample(sorted(files), 2)
    return {one: files[other], other: files[one]}


def missing(files: Files, older: Files, chance: random.Random) -> dict[str, None]:
    return dict.fromkeys(chance.sample(sorted(files), chance.randrange(1, len(files) + 1)))


KINDS: dict[str, tuple[Callable, int]] = {
    "flipped": (flipped, 10_000),
    "truncated": (truncated, 500),
    "zeroed": (zeroed, 500),
    "spliced": (spliced, 500),
    "swapped": (swapped, 500),
    "missing": (missing, 500),
}


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:.*In its place .* is taken:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen_and_the_generation_before_is_taken(kind, tmp_path, record_property):
    damage, number = KINDS[kind]
    older, newer = two_generations(tmp_path)
    files, old_files = contents(newer), contents(older)
    assert sorted(files) == ["apart-1", "manifest.json", "tensors.safetensors"]
    chance, delivered, unseen = random.Random(0), 0, []
    while delivered < amount(number):
        changed = damage(files, old_files, chance)
        if all(content == files[name] for name, content in changed.items()):
            continue  # zeros in place of zeros
        for name, content in changed.items():
            (newer / name).unlink() if content is None else (newer / name).write_bytes(content)
        saved = store.read_saved(tmp_path)
        if saved.folder != older or seal_of(saved.state) != OLDER:
            unseen.append(changed)
        for name in changed:
            (newer / name).write_bytes(files[name])
        delivered += 1
    record_property("faults", delivered)
    assert unseen == []
    assert seal_of(store.read(tmp_path)) == NEWER


def test_what_is_whole_is_never_taken_for_damaged(tmp_path, record_property):
    loads = amount(500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(loads):
            store.write(tmp_path, state(step))
            assert seal_of(store.read(tmp_path)) == seal(step)
    record_property("faults", f"none in {loads} loads")


def test_damage_of_both_generations_is_an_error_that_names_both(tmp_path):
    for folder in two_generations(tmp_path):
        (folder / "apart-1").unlink()
    with pytest.raises(CheckpointError, match=r"000002 is damaged.*000001 is damaged.*Start anew"):
        store.read(tmp_path)


def test_a_format_without_digests_does_not_see_it(record_property):
    """Negative control: most flips of a file of torch.save load in silence."""
    file, chance, silent = io.BytesIO(), random.Random(0), 0
    saved = {name: value for name, value in state(1, size=4000).items() if name in ("step", "model", "half")}
    torch.save(saved, file)
    tries = amount(10_000)
    for _ in range(tries):
        raw = bytearray(file.getvalue())
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        try:
            found = torch.load(io.BytesIO(bytes(raw)), weights_only=True)
        except READERS:
            continue
        silent += tree_digest(found) != tree_digest(saved)
    record_property("faults", f"{tries}, of which torch.save lets {silent} pass")
    assert silent > tries / 2
