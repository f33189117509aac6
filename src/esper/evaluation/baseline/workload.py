"""What is timed: one layer with seeds in a small network, its forward pass and its training steps.

A worker runs this file by its path, against the Esper of whichever side it stands for. So it uses nothing of Esper but
its public names, and nothing beside it.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import esper

INPUTS, CLASSES, BATCHES = 64, 10, 8
PLANNED_STEPS = 1_000_000  # never reached: every step is one of the middle of a run
WARM_UP = 16
LAYER = "0"


class Workload:
    """One cell: a network whose layer carries so many seeds, and batches of one size.

    Args:
        batch_size: samples of a batch.
        seeds: of the layer.
        channels: of the layer, no fewer than ``seeds``.
        device: where everything lies.
    """

    def __init__(self, batch_size: int, seeds: int, channels: int, device: str) -> None:
        self._batch_size, self._device = batch_size, torch.device(device)
        self._seeds, self._channels = seeds, channels
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCHES * batch_size, INPUTS, generator=generator)
        y = torch.randint(0, CLASSES, (len(x),), generator=generator)
        self._data = x.to(self._device), y.to(self._device)
        self._calls: dict[str, Callable[[], None]] = {}
        self.memory = self._measured_memory()
        forwarded = self._network().eval()
        self._calls["forward"] = partial(_forward, forwarded, self._data[0][:batch_size])
        self._calls["live_step"] = self._live_step()
        for call in self._calls.values():
            for _ in range(WARM_UP):
                call()
        self._wait()

    def times(self, what: str, calls: int) -> list[float]:
        """Seconds that each of so many calls took, until the device was done.

        Time in which this thread was ready to run and the kernel gave the core to others is none of the call's.
        """
        call, seconds, waited = self._calls[what], [], _core_waits()
        for _ in range(calls):
            waited_before, begun = next(waited), time.perf_counter()
            call()
            self._wait()
            taken, waiting = time.perf_counter() - begun, next(waited) - waited_before
            seconds.append(taken - waiting if waiting < taken else taken)  # it may have waited just before it began
        return seconds

    def throughput(self, seconds: float) -> dict[str, Any]:
        """Training samples a second without waiting between steps, and how busy the GPU was meanwhile."""
        step, steps, waited = self._calls["step"], 0, _core_waits()
        with _Utilisation(self._device) as utilisation:
            waited_before, begun = next(waited), time.perf_counter()
            while time.perf_counter() - begun < seconds or not steps:
                for _ in range(4):
                    step()
                steps += 4
                if steps % 64 == 0:
                    self._wait()  # no endless queue
            self._wait()
            taken = time.perf_counter() - begun - (next(waited) - waited_before)
        return {"samples_per_s": steps * self._batch_size / taken, **utilisation.told()}

    def _measured_memory(self) -> dict[str, Any]:
        """What the network, its session and the first training steps take."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = _resident_bytes("VmRSS")
        model = self._network()
        step = self._calls["step"] = _stepper(*self._session(model))
        for _ in range(WARM_UP):
            step()
        self._wait()
        peak = _resident_bytes("VmHWM")
        return {
            "host_bytes": None if before is None or peak is None else peak - before,
            "device_bytes": torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None,
            "state_bytes": sum(buffer.nbytes for buffer in model.buffers()),
        }

    def _network(self) -> nn.Module:
        """Always the same; all its buffers are Esper's."""
        torch.manual_seed(0)
        host = nn.Sequential(nn.Linear(INPUTS, self._channels), nn.ReLU(), nn.Linear(self._channels, CLASSES))
        return esper.wrap(host.to(self._device), esper.GrowthConfig(layers={LAYER: self._seeds}))

    def _session(self, model: nn.Module) -> tuple[esper.Session, Iterator[Any]]:
        """A run of a network, and the batches it takes."""
        loader = esper.BatchLoader(self._data, self._batch_size, seed=0)
        session = esper.Session(
            model,
            torch.optim.AdamW(model.parameters(), lr=1e-3),
            loss=lambda model, batch: _losses(model, batch).mean(),
            evaluate=lambda model: esper.Evaluation(losses=_losses(model, self._data)),
            planned_steps=PLANNED_STEPS,
            loader=loader,
        )
        return session, chain.from_iterable(repeat(loader))

    def _live_step(self) -> Callable[[], None]:
        """Training steps while a graft over all seeds of the layer is blended in."""
        session, batches = self._session(self._network())
        step, states = _stepper(session, batches), []
        session.subscribe(lambda event: states.append(event["target"]) if event["event"] == "transition" else None)
        step()
        session.germinate(LAYER, "all", "low_rank")
        session.after_epoch()
        step()
        if states[-1] != "GRAFTING":
            raise RuntimeError(f"The graft should be blended in, but is {states[-1]}.")
        return step

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


class _Utilisation:
    """Share of the time in which the GPU computed, as its driver tells, read ten times a second."""

    def __init__(self, device: torch.device) -> None:
        self._why: str | None = None
        self._shares: list[float] = []
        self._over = threading.Event()
        if device.type != "cuda":
            self._why = "nothing runs on a GPU"
            return
        try:
            torch.cuda.utilization()
        except Exception as error:  # nvidia-ml-py is missing, or raises errors of its own: no driver, no such counter
            self._why = str(error).splitlines()[0]

    def __enter__(self) -> "_Utilisation":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def told(self) -> dict[str, Any]:
        mean = sum(self._shares) / len(self._shares) if self._shares else None
        why = self._why or (None if self._shares else "it was measured for too short a time")
        return {"gpu_utilisation": mean, "why_no_gpu_utilisation": why}

    def _watch(self) -> None:
        while self._why is None and not self._over.wait(0.1):
            self._shares.append(torch.cuda.utilization() / 100)


def _forward(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        model(batch)


def _stepper(session: esper.Session, batches: Iterator[Any]) -> Callable[[], None]:
    def step() -> None:
        session.step(next(batches))

    return step


def _losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _resident_bytes(line: str) -> int | None:
    """What the kernel says of this process: ``VmRSS`` now, ``VmHWM`` at most so far. None where it does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [one.split() for one in lines if one.startswith(line + ":")]
    return int(found[0][1]) * 1024 if found else None


def _core_waits() -> Iterator[float]:
    """Seconds that this thread has been waiting for a core so far, at every turn; 0 where the kernel does not tell."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        yield from repeat(0.0)
    try:
        while True:
            yield int(os.pread(file, 64, 0).split()[1]) * 1e-9
    finally:
        os.close(file)


_built: list[Workload] = []


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What a worker is asked: to build a cell, to time calls, or to measure throughput."""
    match question["do"]:
        case "build":
            torch.set_num_threads(question["threads"])
            cell = (question["batch_size"], question["seeds"], question["channels"])
            _built.append(Workload(*cell, question["device"]))
            return _built[-1].memory
        case "throughput":
            return _built[-1].throughput(question["seconds"])
        case _:
            return {"seconds": _built[-1].times(question["what"], question["calls"])}
