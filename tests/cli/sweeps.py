"""Sweeps in processes of their own, some of which are killed."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

FILE = """\
space:
  host_settings: {hidden: 4}
  epochs: 2
  steps_per_epoch: 12
  growth: {max_rounds: 0}
  lr: [0.03, 0.003]
  seed: [0, 1]
"""
PATIENCE_S = 400.0
MARK = "ESPER_SWEEP_OF_A_TEST"
"""Variable by which processes that such a sweep has started are found, whoever started them."""


def begun(directory, file, output, *options):
    """``esper sweep``, as typed in a directory, with every warning an error."""
    line = [sys.executable, "-W", "error", "-m", "esper", "sweep", file, "--output", output, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), MARK: str(directory)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=directory, env=environment, **pipes)


def ended(process, code=0):
    """What it has printed, once it has ended with this code."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out


def until(found):
    """What ``found`` gives, once it gives anything."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def kill_one(trials: Path, spared=(), has_checkpoint=True) -> str:
    """Kill the process of a trial that is under way, which is not one of the spared; gives the trial's name."""

    def found():
        for lock in sorted(trials.glob("*.lock")):
            run = lock.with_suffix("")
            is_there = any((run / "checkpoints").glob("[0-9]*")) if has_checkpoint else (run / "config.yaml").exists()
            if run.name in spared or not is_there or (run / "result.json").exists():
                continue
            try:
                os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
            except (ValueError, OSError):  # it is just beginning, or has ended
                continue
            return run.name
        return None

    return until(found)


def table(output: Path) -> list[dict[str, str]]:
    """The rows of a sweep, but for what a clock has measured."""
    with (output / "sweep.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def left_of(directory: Path) -> list[str]:
    """Processes that a sweep in a directory has started, by what they call themselves."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={directory}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended, or is not ours
            continue
    return found


@contextmanager
def cluster(directory) -> Iterator[str]:
    """A Ray cluster of this machine alone, begun by somebody else; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--num-cpus=1",
        f"--object-store-memory={80 * 2**20}",
    ]
    line = [
        Path(sys.executable).with_name("ray"),
        "start",
        "--head",
        "--block",
        f"--port={address.split(':')[1]}",
        *options,
    ]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", MARK: str(directory)}
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as short, (directory / "ray.log").open("w") as log:
        ray = subprocess.Popen([*line, f"--temp-dir={short}"], env=environment, stdout=log, stderr=log)
        try:
            until(lambda: "block forever" in (directory / "ray.log").read_text())
            yield address
        finally:
            ray.terminate()
            ray.wait()
