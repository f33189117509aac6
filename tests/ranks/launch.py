"""Starts ranks as processes of their own and hears what they tell."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def place() -> dict[str, str]:
    """The environment of a rank."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def started(folder: Path, size: int, *names: str, module: str = "tests.ranks.worker") -> list[subprocess.Popen[str]]:
    """Processes of so many ranks, which meet in ``folder``."""
    store = folder / f"store{size}"
    store.unlink(missing_ok=True)  # of ranks before them, which would be waited for
    command = [sys.executable, "-m", module, str(store)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*command, str(rank), str(size), *names], cwd=ROOT, env=place(), **pipes)
        for rank in range(size)
    ]


def heard(folder: Path, size: int, *names: str) -> list[dict[str, Any]]:
    """What each rank has come to, by scenario."""
    processes = started(folder, size, *names)
    ends = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]
