"""``python -m benchmarks.soak``: many steps while seeds germinate, rise, are culled and become fossils at random.

A small transformer with 16 seeds in each layer of its perceptrons trains on random tokens. Between steps a random seed
goes on by a random part of its life. Looked at: whether the host stays finite; whether the memory in use is a function
of what is there (the same slots, groups and fossils always take the same bytes), so that nothing leaks; and whether the
same seed gives the same bytes, in torch's deterministic mode: a second run goes over a fifth of the steps.
"""

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
from torch import nn

import esper
from benchmarks.machine import machine
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.grafting import advance
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from esper.tasks.gpt import GPTHost

RESULTS = Path(__file__).parent.parent / "results" / "soak"
HOST, WINDOWS, SEEDS, LR = GPTHost(64, 32, 64, 256, 2, 2), 8, 16, 1e-3
BLUEPRINTS: dict[str, dict[str, Any]] = {
    "affine": {},
    "low_rank": {"rank": 4, "reads": "chunk"},
    "bottleneck_mlp": {"hidden": 8, "reads": "chunk"},
    "glu": {"hidden": 8, "reads": "chunk"},
}
LIFE = (State.GERMINATED, State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING)
EVERY, CHECKED, MOST_FOSSILS = 5, 500, 60


class Gardener:
    """Moves random seeds on.

    Args:
        model: wrapped.
        seed: of all choices.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._places, self._random, self._lifecycle = list(places(model)), random.Random(seed), 0
        self.moves: dict[str, int] = {}

    def move(self) -> None:
        """One seed goes on by one state, or at once until its graft is live, or ends."""
        place = self._random.choice(self._places)
        seed, is_hasty = self._random.randrange(SEEDS), self._random.random() < 0.5
        self._move(place, seed)
        while is_hasty and int(place.state.lifecycle[seed]) in (State.GERMINATED, State.TRAINING):
            self._move(place, seed)

    def _move(self, place: Place, seed: int) -> None:
        state = State(int(place.state.lifecycle[seed]))
        may_stay = sum(map(len, place.arena.fossils)) < MOST_FOSSILS
        if state is State.DORMANT:
            self._lifecycle += 1
            blueprint = self._random.choice(sorted(BLUEPRINTS))
            settings = BLUEPRINTS[blueprint]
            command = Command(place.layer_id, seed, State.GERMINATED, blueprint=blueprint, settings=settings)
            transition(place, command, birth=Birth(self._lifecycle, ramp_steps=20))
            self._count(State.GERMINATED)
        elif state is State.FINE_TUNING and may_stay and self._random.random() < 0.3:
            self._end(place, seed, State.FOSSILIZED)
        elif state in LIFE[2:] and self._random.random() < 0.3:
            lifecycle = int(place.state.lifecycle_id[seed])
            transition(place, Command(place.layer_id, seed, State.CULLED))
            place.arena.remove(lifecycle)
            self._end(place, seed, None)
        elif state is not State.FINE_TUNING:
            target = LIFE[LIFE.index(state) + 1]
            transition(place, Command(place.layer_id, seed, target))
            self._count(target)

    def structure(self) -> tuple[Any, ...]:
        """All that takes memory beyond the host's."""
        return tuple(
            (
                (arena := place.arena).num_slots,
                arena.slot_size,
                arena.memory.shape[1],
                len(arena.ramps),
                tuple((group.blueprint, len(group.grafts), group.is_live) for group in arena.groups),  # type: ignore[union-attr, arg-type]
                place.incubation.is_active,
            )
            for place in self._places
        )

    def _end(self, place: Place, seed: int, how: State | None) -> None:
        if how is not None:
            transition(place, Command(place.layer_id, seed, how))
        self._count(State.CULLED if how is None else how)
        transition(place, Command(place.layer_id, seed, State.DORMANT))

    def _count(self, target: State) -> None:
        self.moves[target.name] = self.moves.get(target.name, 0) + 1


def run(device: torch.device, steps: int, seed: int, in_use: Callable[[], int] | None) -> dict[str, Any]:
    """Train, and tell what was seen.

    Args:
        device: where.
        steps: how many.
        seed: of everything.
        in_use: bytes of memory; None looks at none.
    """
    torch.manual_seed(seed)
    model = esper.wrap(HOST().to(device), esper.GrowthConfig(layers={"blocks.*.mlp.*": SEEDS}))
    optimizer = torch.optim.AdamW(model.parameters(), LR)
    SlotOptimizer(places(model), optimizer, lambda: LR, 0.01)
    gardener, memory, leaks, digests = Gardener(model, seed), {}, [], {}
    generator = torch.Generator(device).manual_seed(seed)
    largest = torch.zeros((), device=device)
    for step in range(steps):
        if step % EVERY == 0:
            gardener.move()
        tokens = torch.randint(HOST.vocabulary, (WINDOWS, HOST.context + 1), device=device, generator=generator)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for place in places(model):
            advance(place)
        largest = torch.maximum(largest, loss.detach())  # nan stays
        del loss, tokens
        if (step + 1) % CHECKED == 0:
            digests[step + 1] = digest_of(model)
        if in_use is not None and step >= EVERY:
            bytes_now, key = in_use(), gardener.structure()
            if memory.setdefault(key, bytes_now) != bytes_now:
                leaks.append((step, bytes_now - memory[key]))
    is_finite = all(bool(one.isfinite().all()) for one in model.parameters())
    return {
        "steps": steps,
        "moves": gardener.moves,
        "structures": len(memory),
        "steps_with_other_memory": leaks[:20],
        "largest_loss": float(largest),
        "is_finite": is_finite,
        "digests": digests,
    }


def digest_of(model: nn.Module) -> str:
    """Of all that a model holds."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    """Two runs, or one; print and write what was seen."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    device, again = torch.device(options.device), max(CHECKED, options.steps // 5)
    in_use = partial(torch.cuda.memory_allocated, device) if device.type == "cuda" else None
    first, second = (run(device, steps, options.seed, in_use) for steps in (options.steps, again))
    is_repeatable = all(first["digests"][step] == digest for step, digest in second["digests"].items())
    told = {"machine": machine(), "runs": [first, second], "is_repeatable": is_repeatable}
    print(json.dumps(told, indent=1))
    output = options.output or RESULTS / f"{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
