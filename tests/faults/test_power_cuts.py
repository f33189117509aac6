"""Whatever a disk has lost of what was not flushed: the last generation that was finished is there."""

import random
import shutil
from pathlib import Path

import pytest

from esper.checkpoint import store
from esper.contracts.errors import CheckpointError
from tests.faults.amount import amount
from tests.faults.disk import Disk
from tests.faults.operations import told
from tests.faults.test_crashes import expected, seals, write_several

pytestmark = pytest.mark.filterwarnings("ignore:.*In its place .* is taken:RuntimeWarning")


def recorded(folder: Path) -> tuple[Disk, dict[int, int]]:
    """All operations of a writer, and after which of them each generation was finished."""
    disk, finished = Disk(), {}
    with told(lambda kind, paths: None, disk.note):
        write_several(folder / "run" / "checkpoints", lambda step: finished.setdefault(step, len(disk.entries)))
    return disk, finished


def rebuilt(found: dict[Path, bytes | None], recorded_at: Path, folder: Path) -> Path:
    """What a disk holds, in another folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted((path for path, content in found.items() if content is None), key=lambda path: len(path.parts)):
        (folder / path.relative_to(recorded_at)).mkdir(parents=True, exist_ok=True)
    for path, content in found.items():
        if content is not None:
            (folder / path.relative_to(recorded_at)).write_bytes(content)
    return folder / "run" / "checkpoints"


def lost(disk: Disk, finished: dict[int, int], recorded_at: Path, folder: Path, cuts: int) -> tuple[int, int]:
    """How many cuts were made after a generation was finished, and how many of them have lost it."""
    chance, made, losses = random.Random(0), 0, 0
    for _ in range(cuts):
        number = chance.randrange(1, len(disk.entries) + 1)
        last = max((step for step, at in finished.items() if at <= number), default=0)
        directory = rebuilt(disk.after_a_cut(number, chance), recorded_at, folder)
        try:
            saved = store.read(directory)
        except CheckpointError:
            losses += last > 0
        else:
            is_right = saved["step"] >= last and seals(dict(saved)) == expected(saved["step"])
            losses += not is_right
        made += last > 0
    return made, losses


def test_the_power_may_fail_at_any_time(tmp_path, record_property):
    disk, finished = recorded(tmp_path / "written")
    made, losses = lost(disk, finished, tmp_path / "written", tmp_path / "left", max(50, amount(1_000)))
    record_property("faults", f"{made} cuts after a generation was finished")
    assert made > 20
    assert losses == 0


@pytest.mark.parametrize("forgotten", ["files", "folders"])
def test_a_writer_that_does_not_flush_loses_generations(forgotten, tmp_path, record_property):
    """Negative control."""
    disk, finished = recorded(tmp_path / "written")
    folders = {paths[-1] for kind, paths in disk.entries if kind in ("mkdir", "rename")}
    for index, (kind, paths) in enumerate(disk.entries):
        if kind == "fsync" and (paths[0] in folders) is (forgotten == "folders"):
            disk.entries[index] = ("nothing", paths)
    made, losses = lost(disk, finished, tmp_path / "written", tmp_path / "left", 100)
    record_property("faults", f"{made} cuts without flushing {forgotten}, of which {losses} lose a generation")
    assert losses > 0
