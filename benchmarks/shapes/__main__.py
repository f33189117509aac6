"""``python -m benchmarks.shapes``: step time where all batches have one length, two, or each another, on the CPU.

A small transformer reads tokens, once in a bare loop, once wrapped and dormant, and once wrapped within the window of a
round, where batches are remembered. All take turns on the same batches, block by block, in every setting; what counts
is how much slower than the bare loop each is where lengths change, against where they do not. A repeat is the mean over
a block of steps. The first block, in which FLOPs are counted, is told by itself.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from benchmarks.machine import machine
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation

RESULT = Path(__file__).parent.parent / "results" / "shapes" / "cpu.json"
WORDS, WIDTH, HEADS, LAYERS, BATCH = 64, 64, 4, 2, 16
SHORTEST, LONGEST = 16, 80
BLOCK = 20  # steps of one repeat
MOST_SLOWER = 0.05  # the target: of esper / bare at changing lengths, above esper / bare at one length
PLANNED_STEPS = 10**6

Batch = tuple[Tensor, Tensor]


class Host(nn.Module):
    """A transformer that tells the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layers = [
            nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(LAYERS)
        ]
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, L, WORDS]`` of tokens ``[B, L]``."""
        logits: Tensor = self.head(self.blocks(self.embed(tokens)))
        return logits


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of the next tokens."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def evaluate(model: nn.Module) -> esper.Evaluation:
    """On a few held-out samples."""
    tokens, _ = _batch(SHORTEST, torch.Generator().manual_seed(1))
    logits = model(tokens).transpose(1, 2)
    return esper.Evaluation(F.cross_entropy(logits, tokens, reduction="none").mean(1))


class Once:
    """Begins a round at the first boundary, whose window lasts for all of the measurement."""

    def decide(self, seen: Observation) -> list[Command]:
        """A graft that computes nothing."""
        is_time = not seen.rounds_done
        return [Command("head", 0, State.GERMINATED, blueprint="noop", settings={})] if is_time else []


def bare() -> Callable[[Batch], object]:
    """A loop without Esper."""
    model = _host()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(batch: Batch) -> None:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def wrapped(*, in_window: bool) -> Callable[[Batch], object]:
    """The same in a session: dormant, or within the window of a round."""
    config = esper.GrowthConfig(layers=["head"], max_rounds=1 if in_window else 0, round_fraction=1.0)
    model = esper.wrap(_host(), config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    session = esper.Session(model, optimizer, loss=loss, evaluate=evaluate, planned_steps=PLANNED_STEPS, policy=Once())
    if in_window:
        session.step(_batch(SHORTEST, torch.Generator().manual_seed(2)))
        session.after_epoch()
        assert any(event["event"] == "round_begun" for event in session.events)
    return session.step


LOOPS: dict[str, Callable[[], Callable[[Batch], object]]] = {
    "bare": bare,
    "dormant": lambda: wrapped(in_window=False),
    "in a window": lambda: wrapped(in_window=True),
}


def lengths(setting: str, generator: torch.Generator) -> Iterator[int]:
    """Of batch after batch."""
    middle = (SHORTEST + LONGEST) // 2
    if setting == "one length":
        return itertools.repeat(middle)
    if setting == "two lengths":
        return itertools.cycle([middle - 8, middle + 8])
    return iter(lambda: int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator)), -1)


SETTINGS = ("one length", "two lengths", "each another")


def main() -> None:
    """Measure, print, write ``cpu.json``."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    figures = {setting: _measure(setting, options.repeats) for setting in SETTINGS}
    for setting, figure in figures.items():
        for name in LOOPS:
            low, middle, high = figure[name]
            first = figure["first_block"][name]
            print(f"{setting}, {name}: {middle:.2f} ms a step (quartiles {low:.2f} to {high:.2f}; first {first:.2f})")
    slower = {}
    for name in list(LOOPS)[1:]:
        fixed = figures["one length"]["ratios"][name][1]
        for setting in SETTINGS[1:]:
            slower[f"{name}, {setting}"] = excess = figures[setting]["ratios"][name][1] / fixed - 1
            verdict = "target met" if excess <= MOST_SLOWER else "target MISSED"
            print(
                f"{name}, {setting}: {figures[setting]['ratios'][name][1]:.3f} of the bare loop, {excess:+.1%} against "
                f"one length ({fixed:.3f}), {verdict}: at most {MOST_SLOWER:.0%}"
            )
    host = {"words": WORDS, "width": WIDTH, "layers": LAYERS, "batch": BATCH, "lengths": [SHORTEST, LONGEST]}
    result: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "setting": {**host, "threads": options.threads, "block": BLOCK, "repeats": options.repeats},
        "figures": figures,
        "slower_than_at_one_length": slower,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


def _measure(setting: str, repeats: int) -> dict[str, Any]:
    """Milliseconds per step of each loop, and ratios to the bare one in the same block: quartiles."""
    steps = {name: make() for name, make in LOOPS.items()}
    generator = torch.Generator().manual_seed(0)
    following = lengths(setting, generator)
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    first: dict[str, float] = {}
    for repeat in range(-3, repeats):  # three to warm up
        batches = [_batch(length, generator) for length in itertools.islice(following, BLOCK)]
        for name in list(LOOPS) if repeat % 2 else reversed(list(LOOPS)):
            start = time.perf_counter()
            for batch in batches:
                steps[name](batch)
            taken = 1e3 * (time.perf_counter() - start) / BLOCK
            first.setdefault(name, taken)
            if repeat >= 0:
                times[name].append(taken)
    figure: dict[str, Any] = {name: _quartiles(series) for name, series in times.items()}
    figure["first_block"] = first
    figure["ratios"] = {
        name: _quartiles([one / other for one, other in zip(series, times["bare"], strict=True)])
        for name, series in times.items()
    }
    return figure


def _host() -> Host:
    torch.manual_seed(0)
    return Host()


def _batch(length: int, generator: torch.Generator) -> Batch:
    tokens = torch.randint(WORDS, (BATCH, length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.shapes", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=40, help="blocks of each loop")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
