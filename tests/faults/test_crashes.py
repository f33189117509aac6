"""A writer that stops anywhere leaves the last generation that it finished, or the next, and nothing else is seen."""

import errno
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from tests.faults.amount import amount
from tests.faults.operations import in_a_child, told
from tests.faults.states import seal, seal_of, state

STOPPED = 77
GENERATIONS = 4


def write_several(directory: Path, finished: Callable[[int], None]) -> None:
    """Generations with a part that stays, so that it is linked, and one that changes."""
    stays = Packed.of(state(99))
    for step in range(1, GENERATIONS + 1):
        store.write(directory, state(step, Packed.of(state(step + 10))) | {"stays": stays})
        finished(step)


def seals(saved: dict) -> str:
    stays = saved.pop("stays")
    return seal_of(saved) + seal_of(stays.read() | {"part": None})


def expected(step: int) -> str:
    return seal(step, step + 10) + seal(99)


def stop_at(directory: Path, number: int, *, halfway: bool) -> tuple[int, str]:
    """Write until the operation of a number, and stop before it, or in the middle of what it writes."""
    log = directory.with_suffix(".log")

    def work() -> None:
        count = 0

        def before(kind: str, paths: tuple[Path, ...]) -> None:
            nonlocal count
            count += 1
            if count == number and not (halfway and kind == "write"):
                log.write_text(kind)
                os._exit(STOPPED)

        def after(kind: str, paths: tuple[Path, ...]) -> None:
            if count == number and halfway and kind == "write":
                with paths[0].open("r+b") as file:
                    file.truncate(paths[0].stat().st_size // 2)
                log.write_text("half of a write")
                os._exit(STOPPED)

        done = directory.with_suffix(".done")
        with told(before, after):
            write_several(directory, lambda step: os.close(os.open(done.with_suffix(f".done{step}"), os.O_CREAT)))

    status = in_a_child(work)
    return status, log.read_text() if log.exists() else ""


def test_every_operation_of_a_writer_may_be_its_last(tmp_path, record_property):
    points: list[str] = []
    for halfway in (False, True):  # the second time only what writes: other operations have no half
        for number in [at for at, kind in enumerate(points, 1) if kind == "write"] if halfway else range(1, 1000):
            directory = tmp_path / f"{number}-{halfway}" / "checkpoints"
            directory.parent.mkdir()
            status, kind = stop_at(directory, number, halfway=halfway)
            if status == 0:
                break
            assert status == STOPPED
            points.append(kind)
            finished = len(list(directory.parent.glob("*.done*")))
            if finished == 0 and not any(directory.glob("[0-9]*")):
                continue  # nothing was finished, and nothing is there
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # no half generation is met
                saved = store.read(directory)
            assert saved["step"] in (finished, finished + 1), (number, kind)
            assert seals(dict(saved)) == expected(saved["step"])
            store.write(directory, state(50))  # the next writer goes on, and clears up
            assert seal_of(store.read(directory)) == seal(50)
            assert len(list(directory.iterdir())) <= 2
    record_property(
        "faults", f"{len(points)} ({', '.join(f'{kind} {points.count(kind)}' for kind in sorted(set(points)))})"
    )
    assert {"write", "half of a write", "fsync", "rename", "mkdir", "link", "unlink", "rmdir"} <= set(points)
    assert len(points) > 70


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_every_operation_of_a_writer_may_fail(number, tmp_path, record_property):
    """As on a full disk, or a broken one: an error, and the generations that are there stay."""
    failed: list[str] = []
    for point in range(1, 1000):
        directory, count, finished = tmp_path / str(point), 0, []

        def before(kind: str, paths: tuple[Path, ...], point: int = point) -> None:
            nonlocal count
            count += 1
            if count == point:
                failed.append(kind)
                raise OSError(number, os.strerror(number))

        with told(before), suppress(OSError):
            write_several(directory, finished.append)
        if count < point:
            break
        if finished or any(directory.glob("[0-9]*")):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                saved = store.read(directory)
            assert saved["step"] - len(finished) in (0, 1)
            assert seals(dict(saved)) == expected(saved["step"])
        store.write(directory, state(50))
        assert seal_of(store.read(directory)) == seal(50)
        assert len(list(directory.iterdir())) <= 2
    record_property(
        "faults", f"{len(failed)} ({', '.join(f'{kind} {failed.count(kind)}' for kind in sorted(set(failed)))})"
    )
    assert {"write", "fsync", "rename", "mkdir", "link", "unlink", "rmdir"} <= set(failed)


def killed(work: Callable[[Callable[[int], None]], None], after: float) -> int:
    """Let a child write until it is killed; the last step of which it had told that it was finished."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(lambda step: os.write(writing, step.to_bytes(4, "little")) and None)
        finally:
            os._exit(1)
    os.close(writing)
    os.read(reading, 4)  # it has begun
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        steps = pipe.read()
    return int.from_bytes(steps[-4:], "little") if len(steps) >= 4 else 0


def test_a_writer_may_be_killed_at_any_time(tmp_path, record_property):
    chance, kills, resumed_from = random.Random(0), amount(2_000), set()
    for number in range(kills):
        directory = tmp_path / str(number % 20)  # most go on where others were killed

        def work(tell: Callable[[int], None], directory: Path = directory) -> None:
            stays = Packed.of(state(99))
            begin = store.read(directory)["step"] if any(directory.glob("[0-9]*")) else 0
            tell(begin)
            for step in range(begin + 1, begin + 10_000):
                store.write(directory, state(step, Packed.of(state(step + 10))) | {"stays": stays})
                tell(step)

        finished = killed(work, chance.uniform(0, 0.06))
        if finished == 0 and not any(directory.glob("[0-9]*")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            saved = store.read(directory)
        assert saved["step"] in (finished, finished + 1) or finished == 0
        assert seals(dict(saved)) == expected(saved["step"])
        resumed_from.add((number % 20, saved["step"]))
    record_property("faults", f"{kills} kills, which left {len(resumed_from)} different states")


def test_a_file_that_is_written_in_place_is_lost_by_the_same(tmp_path, record_property):
    """Negative control: ``torch.save``."""
    chance, kills, lost = random.Random(0), max(20, amount(200)), 0
    saved = {"weight": torch.randn(2_000, 1_000)}
    for number in range(kills):
        path = tmp_path / f"{number}.pt"

        def work(tell: Callable[[int], None], path: Path = path) -> None:
            torch.save(saved, path)
            tell(1)
            for step in range(2, 10_000):
                torch.save(saved, path)
                tell(step)

        killed(work, chance.uniform(0, 0.06))
        try:
            torch.load(path, weights_only=True)
        except (EOFError, OSError, RuntimeError):
            lost += 1
        path.unlink()
    record_property("faults", f"{kills} kills, by which torch.save loses {lost}")
    assert lost > 0
