"""``esper bench``: prints what was measured."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from esper.cli.options import Options
from esper.evaluation.bench.sections import SECTIONS
from esper.evaluation.machine import machine
from esper.tasks.placed import device_name, device_named
from esper.whole_file import write_whole


def show(device: str, only: Sequence[str], output: Path | None, *, is_quick: bool) -> None:
    """Measure, print a table for every part, and write the figures.

    Raises:
        ConfigError: if there is no such device.
    """
    target = torch.device(device_named(Options(device=device).device))
    about = machine()
    print(f"{device_name(target)}; {about['processor']}, torch {about['torch']}\n")
    found = []
    for name in only:
        section = SECTIONS[name](target, is_quick)
        if section is None:
            print(f"{name}: nothing to measure on {target.type}.\n")
            continue
        print(section.told(), end="\n\n", flush=True)
        found.append(section.to_dict())
    if output is not None:
        told = {"machine": about, "device": str(target), "is_quick": is_quick, "sections": found}
        write_whole(output, (json.dumps(told, indent=1) + "\n").encode())
        print(f"Written to {output}")
