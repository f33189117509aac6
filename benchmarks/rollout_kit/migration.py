"""Files of the old layer, whole and broken in many ways, and what ``esper migrate`` makes of them.

Every file is of a random model with one to three old layers in random states. Whatever it is, the command may end in
two ways only: migrated, so that the new model computes to the bit what the old one did, or refused by one sentence and
exit code 2, with nothing written. The file itself never changes. Then migrations are killed at random instants.
"""

import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import esper
from benchmarks.rollout_kit.legacy_models import MAKERS, Drawn, build, draw
from esper.checkpoint import store
from esper.checkpoint.digests import digest
from esper.checkpoint.tree import flatten
from esper.cli.main import DONE, WRONG_INPUT, main
from esper.contracts.errors import CheckpointError
from esper.legacy import files
from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer
from esper.migration.files import migrate
from esper.migration.loading import load

FILES, KILLS = 5000, 50

Migrating = Callable[[Path], Any]
"""Migrates a file to the directory beside it."""


def trial(count: int, folder: Path, command: Callable[[Sequence[str]], int] = main) -> dict[str, dict[str, int]]:
    """Migrate so many generated files.

    Args:
        count: of files; all kinds take turns.
        folder: empty; files are made there.
        command: the command line that migrates.

    Returns:
        By the kind of file how many were ``migrated``, ``refused``, or did what may not be: ``failed`` with another
        exit code or an exception, ``changed`` the file, ``differed`` in outputs or in a second run, ``left`` something
        behind though they were refused, or ``missed`` what should have been migrated or refused.
    """
    found = {kind: Counter[str]() for kind in MAKERS}
    for number in range(count):
        kind = list(MAKERS)[number % len(MAKERS)]
        place = folder / str(number)
        place.mkdir()
        found[kind][_one(place, kind, random.Random(number), command)] += 1
        shutil.rmtree(place)
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}


def _one(place: Path, kind: str, rng: random.Random, command: Callable[[Sequence[str]], int]) -> str:
    drawn, path = draw(rng), place / "model.safetensors"
    files.save(drawn.model, path)
    MAKERS[kind](path, rng)
    before = path.read_bytes()
    code, told = _called(command, ["migrate", str(path)])
    if path.read_bytes() != before:
        return "changed"
    if code == WRONG_INPUT:
        if list(place.iterdir()) != [path] or len(told.splitlines()) != 1:
            return "left"
        return "missed" if kind == "valid" and drawn.is_migratable else "refused"
    if code != DONE:
        return "failed"
    if not drawn.is_migratable or kind not in ("valid", "corrupt"):  # a flipped bit may be one that nobody reads
        return "missed"
    return "migrated" if _is_equal(drawn, path) and _is_idle(command, path) else "differed"


def _called(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> tuple[int | None, str]:
    """Exit code, None for an exception; and what was said of errors."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            return command(words), said.getvalue()
        except Exception as error:
            return None, repr(error)


def _is_equal(drawn: Drawn, path: Path) -> bool:
    """Whether a new model with what was migrated computes what the old one does."""
    bare = build(drawn.widths, drawn.is_image, lambda layer: layer).to(drawn.batch.dtype).eval()
    names = [str(2 * index) for index in range(len(drawn.states))]
    new = esper.wrap(bare, esper.GrowthConfig(layers=names, seeds_per_layer=2))
    try:
        load(new, path.with_suffix(".migrated"))
    except CheckpointError:
        return False
    with torch.no_grad():
        return torch.equal(new(drawn.batch), drawn.model(drawn.batch))


def _is_idle(command: Callable[[Sequence[str]], int], path: Path) -> bool:
    """Whether a second run changes nothing."""
    before = _listing(path.parent)
    code, _ = _called(command, ["migrate", str(path)])
    return code == DONE and _listing(path.parent) == before


def _listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def kills(count: int, folder: Path, migrating: Migrating = lambda path: migrate([path])) -> dict[str, int]:
    """Kill migrations at random instants.

    Args:
        count: how many.
        folder: empty.
        migrating: what is killed.

    Returns:
        How many had written ``nothing``, had ``begun``, were ``finished``; and how many did harm: ``changed`` the file,
        or left what is ``damaged``, or what was ``not mended`` by a second run.
    """
    torch.manual_seed(0)
    path, rng, found = folder / "model.safetensors", random.Random(0), Counter[str]()
    files.save(_large(), path)
    before, target = path.read_bytes(), path.with_suffix(".migrated")
    began = time.perf_counter()
    migrating(path)
    seconds, whole = time.perf_counter() - began, _content(target)
    for _ in range(count):
        shutil.rmtree(target)
        _killed(lambda: migrating(path), rng.uniform(0, 2 * seconds))  # some come too late
        found[_found(target, whole)] += 1
        found["changed"] += path.read_bytes() != before
        with contextlib.suppress(esper.ConfigError):
            migrate([path])
        hidden = [one for one in target.iterdir() if one.name.startswith(".")]
        found["not mended"] += _found(target, whole) != "finished" or bool(hidden)
    return dict(sorted(found.items()))


def _large() -> nn.Module:
    """A model whose files take some milliseconds."""
    layers = [LegacyKasminaLayer(nn.Linear(600, 600), LegacyConfig(ramp_steps=1)) for _ in range(2)]
    layers[0].request_germination(0, "bottleneck_mlp")
    layers[0].begin_grafting(torch.optim.SGD(layers[0].base_layer.parameters(), lr=0.1))
    layers[0].advance()
    return nn.Sequential(*layers)


def _killed(work: Callable[[], Any], after_s: float) -> None:
    """Do work in a process that is killed."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # others do not live on in a forked process
        work()
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _found(target: Path, whole: dict[str, str]) -> str:
    """How far a migration has come."""
    if not target.exists():
        return "nothing"
    if all(path.name.startswith(".") for path in target.iterdir()):
        return "begun"
    try:
        return "finished" if _content(target) == whole else "damaged"
    except CheckpointError:
        return "damaged"


def _content(target: Path) -> dict[str, str]:
    """Digests of all tensors of a migrated checkpoint."""
    return {name: digest(tensor) for name, tensor in flatten(store.read(target))[1].items()}


def measure() -> dict[str, Any]:
    """5,000 files, and 50 kills."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return {"files": trial(FILES, Path(one)), "kills": kills(KILLS, Path(other))}
