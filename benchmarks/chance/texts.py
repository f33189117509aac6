"""Byte-level transformers of 0.25, 1 and 5 million parameters on Python source, trained for few and for many bytes."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.chance.tree import Arm, Data, Tree, measured
from benchmarks.growth.environment import gathered
from esper.tasks.gpt import GPTHost
from esper.tasks.task import Samples

BATCH, CONTEXT = 64, 256
WARMUP, RAMP = 100, 250
MOST_BYTES = 90_000_000
HOSTS = {
    "0.25 M": GPTHost(256, CONTEXT, width=64, hidden=256, blocks=4, heads=4),
    "1 M": GPTHost(256, CONTEXT, width=128, hidden=512, blocks=5, heads=4),
    "5 M": GPTHost(256, CONTEXT, width=256, hidden=1024, blocks=6, heads=8),
}
QUICK = GPTHost(256, CONTEXT, width=16, hidden=32, blocks=2, heads=2)


def hidden(host: GPTHost, factor: float) -> GPTHost:
    """All perceptrons wider."""
    return replace(host, hidden=round(host.hidden * factor))


def stream(host: GPTHost, factor: float) -> GPTHost:
    """Everything wider, by whole heads of the same size."""
    wider = {name: round(getattr(host, name) * factor) for name in ("width", "heads", "hidden")}
    return replace(host, **wider)


def measure(seeds: int, device: str, *, is_quick: bool) -> Iterator[dict[str, Any]]:
    """Train every tree."""
    data = _read(device, windows=20 if is_quick else 1000, most=1_000_000 if is_quick else MOST_BYTES)
    for tree in [_quick()] if is_quick else (tree for seed in range(seeds) for tree in trees(seed)):
        batch = Batches(data[0], tree.seed, 2 if is_quick else BATCH)
        yield measured(tree, Data(batch, *data[1:]))


def trees(seed: int) -> Iterator[Tree]:
    """All hosts and lengths, in megabytes read; from the start the network of the grown size for the same FLOPs."""
    small = HOSTS["0.25 M"]
    for megabytes in (100, 50, 25, 12.5):
        at = (0.05, 0.1, 0.2, 0.3, 0.45) if megabytes == 100 else (0.1, 0.3)
        factors = (1.5, 2.5, 4) if megabytes == 100 else (2.5, 4)
        arms = [_hidden(small, factor, share, ramp) for factor in factors for share in at for ramp in (0, RAMP)]
        arms += [_stream(small, 1.5, share, ramp) for share in (0.1, 0.3) for ramp in (0, RAMP)]
        yield _tree("0.25 M", seed, 3e-3, megabytes, arms)
    yield _tree("0.25 M", seed, 3e-3, 100, [], stream(small, 1.5), "stream x1.5 from the start")
    yield _tree("0.25 M", seed, 3e-3, 100, [], hidden(small, 2.5), "hidden x2.5 from the start")
    for name, lr, lengths in (("1 M", 3e-3, (200, 100, 50)), ("5 M", 1.2e-3, (150, 50))):
        host = HOSTS[name]
        arms = [_hidden(host, 2.5, share, ramp) for share in (0.1, 0.3) for ramp in (0, RAMP)]
        arms += [_stream(host, 1.5, 0.1, RAMP)]
        for megabytes in lengths:
            yield _tree(name, seed, lr, megabytes, arms)


class Batches:
    """Windows that begin anywhere, the same ones for one seed.

    Args:
        codes: uint8 ``[bytes]``, on their device.
        seed: draws the windows.
        size: windows of a step.
    """

    def __init__(self, codes: Tensor, seed: int, size: int) -> None:
        self._codes, self._seed, self._size = codes, seed, size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * (self._seed + 1) + step)
        windows = _windows(self._codes, self._size, generator).long()
        return windows[:, :-1], windows[:, 1:]


def _quick() -> Tree:
    arms = [_hidden(QUICK, 2.5, 0.1, 5), _stream(QUICK, 1.5, 0.3, 0)]
    return Tree("quick", QUICK, 0, 3e-3, "constant_then_linear", 60, warmup=10, arms=arms)


def _tree(
    name: str, seed: int, lr: float, megabytes: float, arms: list[Arm], grown: GPTHost | None = None, told: str = ""
) -> Tree:
    steps = round(megabytes * 1e6 / (BATCH * CONTEXT))
    host = HOSTS[name]
    return Tree(told or name, grown or host, seed, lr, "constant_then_linear", steps, WARMUP, arms, unit=host)


def _hidden(host: GPTHost, factor: float, at: float, ramp: int) -> Arm:
    return Arm(f"hidden x{factor:g}", hidden(host, factor), at, ramp)


def _stream(host: GPTHost, factor: float, at: float, ramp: int) -> Arm:
    return Arm(f"stream x{factor:g}", stream(host, factor), at, ramp)


def _read(device: str, windows: int, most: int) -> tuple[Tensor, Samples, Samples]:
    """Python files of this environment: a sixteenth of the files is held out; four fifths of its windows are a test."""
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for content in _contents(most):
        is_held_out = hashlib.sha256(content).digest()[0] < 16
        sides[is_held_out].append(content)
    train, held = (torch.frombuffer(bytearray(b"\n".join(side)), dtype=torch.uint8).to(device) for side in sides)
    drawn = _windows(held, 5 * windows, torch.Generator().manual_seed(5))
    gate, test = (Samples(part[:, :-1], part[:, 1:]) for part in drawn.split([windows, 4 * windows]))
    return train, gate, test


def _contents(most: int) -> list[bytes]:
    """Of files that differ, together of about ``most`` bytes."""
    with TemporaryDirectory() as folder:
        found = gathered("python", Path(folder, "links"), Path(folder), most)
        return list(dict.fromkeys(path.read_bytes() for path in sorted(Path(found.path).rglob("*.py"))))


def _windows(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(codes) - CONTEXT, (count, 1), generator=generator)
    return codes[(starts + torch.arange(CONTEXT + 1)).to(codes.device)]
