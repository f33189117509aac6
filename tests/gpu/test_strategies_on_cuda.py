"""Blending in and training in isolation on a GPU: no training step waits for the device."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.objectives import OBJECTIVES
from esper.kasmina.grafts.strategies import STRATEGIES
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import covered_parameters
from esper.kasmina.places.grafting import advance, needs_signals
from esper.kasmina.places.lifecycle import transition
from esper.kasmina.places.signals import SignalReader
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import mlp, place_of, wrapped
from tests.kasmina.lone import blend_in, germinate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Bench:
    """An MLP whose middle layer has eight seeds, on the GPU."""

    def __init__(self, device: str = "cuda"):
        self.model = wrapped(mlp(6, 64, 64, 4), {"2": 8}).to(device)
        self.place = place_of(self.model, "2")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=device == "cuda")
        SlotOptimizer(places(self.model), self.optimizer, lambda: 1e-3, 0.01)
        self.reader = SignalReader([self.place], covered_parameters(self.model), self.optimizer)
        self.x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).to(device)

    def step(self, *incubating: int) -> None:
        loss = torch.tanh(self.model(self.x)).sub(0.5).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        advance(self.place, self.reader.read(self.place, loss) if needs_signals(self.place) else None)
        for lifecycle in incubating:
            self.place.incubation.learn(lifecycle)


def grow(bench: Bench) -> tuple[int, ...]:
    """A seed for every strategy and for every objective."""
    for seed, strategy in enumerate(list(STRATEGIES)[:4]):
        blend_in(bench.place, seed, seed + 1, strategy, ramp_steps=20)
    numbers = []
    for seed, objective in enumerate(OBJECTIVES, start=4):
        germinate(bench.place, seed, seed + 1, hidden=4)
        transition(bench.place, Command("2", seed, State.TRAINING))
        bench.place.incubation.begin(bench.place.arena.grafts[seed + 1], objective, 0, 1e-3)
        numbers.append(seed + 1)
    return tuple(numbers)


@contextmanager
def no_waiting():
    """Whatever waits for the device raises; torch warns that it does not yet see all that does."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_step_waits_for_the_device():
    """After the first, in which indices and reservoirs are laid out."""
    bench = Bench()
    numbers = grow(bench)
    bench.step(*numbers)
    with no_waiting():
        for _ in range(5):
            bench.step(*numbers)


def test_a_wait_would_be_seen():
    """Negative control."""
    bench = Bench()
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        bench.place.state.alpha.tolist()


def test_it_learns_and_blends_in_as_on_the_cpu():
    seen = {}
    for device in ("cuda", "cpu"):
        bench = Bench(device)
        numbers = grow(bench)
        for _ in range(30):
            bench.step(*numbers)
        measured = bench.place.incubation.end(numbers[0])
        params = bench.place.incubation.get_buffer(f"params_{numbers[0]}").cpu()
        seen[device] = (bench.place.state.alpha.cpu(), params, measured["heldout_samples"])
    torch.testing.assert_close(seen["cuda"][0], seen["cpu"][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen["cuda"][1], seen["cpu"][1], rtol=5e-2, atol=5e-3)
    assert seen["cuda"][2] == seen["cpu"][2] > 0
