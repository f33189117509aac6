"""Starts ranks as processes of their own and hears what they tell."""

import json
import os
from pathlib import Path
from typing import Any

from tests import warm

ROOT = Path(__file__).parents[2]


def place() -> dict[str, str]:
    """The environment of a rank."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def started(folder: Path, size: int, *names: str, module: str = "tests.ranks.worker") -> list[warm.Started]:
    """Processes of so many ranks, which meet in ``folder``."""
    store = folder / f"store{size}"
    store.unlink(missing_ok=True)  # of ranks before them, which would be waited for
    ranks = [["-m", module, str(store), str(rank), str(size), *names] for rank in range(size)]
    return [warm.Started(rank, folder=ROOT, environment=place()) for rank in ranks]


def heard(folder: Path, size: int, *names: str) -> list[dict[str, Any]]:
    """What each rank has come to, by scenario."""
    processes = started(folder, size, *names)
    ends = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]
