"""The Trainers of Hugging Face and of Lightning with and without Esper, in bfloat16: ``python -m benchmarks.trainers
[--output FILE] [--seconds N]``.

For each, with activations kept and computed again: whether seeds that sleep leave the bytes alone, what they cost,
whether something grows, and whether a run that is cut comes to the same bytes. A model like GPT-2 small on a GPU, a
tiny one on the processor. What fails is told with its traceback, and the rest goes on.
"""

import argparse
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks.machine import machine
from benchmarks.trainers.model import STEPS, size

KINDS = {"Hugging Face": "benchmarks.trainers.hugging_face", "Lightning": "benchmarks.trainers.lightning_module"}
FEW, TIMED, TURNS = 8, 20, 3
"""Updates of a run whose bytes are compared, of one that is timed, and how often."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="a file for the figures, as JSON")
    parser.add_argument("--seconds", type=float, default=250, help="no case begins later than this")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    begun, found = time.monotonic(), []
    for trainer, what, case in cases():
        row: dict[str, Any] = {"trainer": trainer, "what": what}
        if time.monotonic() - begun > options.seconds:
            row["left_out"] = f"{options.seconds:g} s were over"
        else:
            row |= tried(case)
        found.append(row)
        print(json.dumps(row), flush=True)
        if options.output:  # after every case: whatever ends this leaves what was found
            told = {"machine": machine(), "versions": versions(), "model": asdict(size()), "cases": found}
            Path(options.output).write_text(json.dumps(told, indent=2) + "\n")
    print()
    for row in found:
        print(f"{row['trainer']:<13} {row['what']:<42} {line(row)}")


def cases() -> Iterator[tuple[str, str, Callable[[Path], dict[str, Any]]]]:
    """What is tried."""
    for checkpointing in (False, True):
        for measure in (same_bytes, throughput, growth):
            for trainer, module in KINDS.items():
                how = "computed again" if checkpointing else "kept"
                what = f"{measure.__name__.replace('_', ' ')}, activations {how}"

                def case(
                    folder: Path, measure: Any = measure, module: str = module, again: bool = checkpointing
                ) -> Any:
                    return measure(import_module(module), folder, again)

                yield trainer, what, case


def tried(case: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What a case gives, or what it failed with; and how long it took."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = case(Path(folder))
        except Exception as error:  # told, and the next case is tried
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def same_bytes(trainer: Any, folder: Path, checkpointing: bool) -> dict[str, Any]:
    """Whether seeds that sleep leave the bytes alone; and whether the plain trainer comes to the same twice."""
    with repeatable():
        plain, again, dormant = (
            trainer.bytes_of(folder / str(number), kind, FEW, checkpointing=checkpointing)
            for number, kind in enumerate(("plain", "plain", "dormant"))
        )
    return {"dormant_is_plain": dormant == plain, "plain_is_plain": again == plain}


def growth(trainer: Any, folder: Path, checkpointing: bool) -> dict[str, Any]:
    """What grows, and whether a run that was cut in the window of a round comes to the same."""
    with repeatable():
        whole, cut = (
            trainer.grown(folder / str(is_cut), is_cut=is_cut, checkpointing=checkpointing) for is_cut in (False, True)
        )
    return {"steps": STEPS, "whole": whole, "resumed_is_whole": whole["digest"] == cut["digest"]}


def throughput(trainer: Any, folder: Path, checkpointing: bool) -> dict[str, Any]:
    """Of seeds that sleep, as a share of the plain trainer's; in turns."""
    seconds: dict[str, list[float]] = {"plain": [], "dormant": [], "plain again": []}
    for turn in range(TURNS):
        for name, times in seconds.items():
            where = folder / f"{turn}-{name}".replace(" ", "-")
            times.append(trainer.step_seconds(where, name.split()[0], TIMED, checkpointing=checkpointing))
    shares = {
        name: [plain / other for plain, other in zip(seconds["plain"], seconds[name], strict=True)]
        for name in ("dormant", "plain again")
    }
    return {
        "plain_milliseconds": median(seconds["plain"]) * 1e3,
        "shares": {name: [min(of), median(of), max(of)] for name, of in shares.items()},
    }


@contextmanager
def repeatable() -> Iterator[None]:
    """With kernels that give the same bytes every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def versions() -> dict[str, str]:
    return {name: import_module(name).__version__ for name in ("torch", "transformers", "accelerate", "lightning")}


def line(row: dict[str, Any]) -> str:
    """A case in short."""
    if reason := row.get("left_out") or row.get("error"):
        return str(reason)[:100]
    if "shares" in row:
        told = (f"{name} {of[1]:.1%} ({of[0]:.1%} to {of[2]:.1%})" for name, of in row["shares"].items())
        return f"plain {row['plain_milliseconds']:.1f} ms a step; {', '.join(told)}"
    if "whole" in row:
        outcome = "; ".join([*row["whole"]["rounds"], *row["whole"]["outcomes"]])
        return f"{outcome}; resumed to the same bytes: {row['resumed_is_whole']}"
    return f"dormant as plain: {row['dormant_is_plain']}; plain twice the same: {row['plain_is_plain']}"


if __name__ == "__main__":
    main()
