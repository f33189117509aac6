"""A configuration: one ``esper run`` for every unit, in a process of its own."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esper.contracts.errors import ConfigError
from esper.evaluation.ab.implementation import Place
from esper.evaluation.ab.subject import Outputs, Unit, UnitFailedError, checked
from esper.evaluation.gains import fingerprint
from esper.tasks.catalogue import load_task

PER_UNIT = ("seed", "controls", "output")
"""Options that every unit has of its own."""
_WRONG_INPUT = 2
_CHUNK = 8192


@dataclass(frozen=True)
class Configuration:
    """A :class:`~esper.evaluation.ab.subject.Subject` that grows a network as a configuration says, without controls.

    Args:
        name: for people.
        values: of the configuration file, paths made absolute.
        place: where ``esper run`` is started.
        runs: directory that keeps the run directory of every unit.
        identity: see there.
    """

    name: str
    values: Mapping[str, Any]
    place: Place
    runs: Path
    identity: str

    @contextmanager
    def measure(self, seed: int) -> Iterator[Unit]:
        """Run it to its end. What is left of a unit that was interrupted is begun anew."""
        directory = self.runs.absolute() / f"seed-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        self._run(seed, directory)
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        grown, metric = result["rows"]["grown"], result["metric"]
        named = {"loss": "test_loss", **({metric: "test_metric"} if metric else {})}
        named |= {name: name for name in ("parameters", "train_flops", "seconds")}
        metrics = checked({name: grown[field] for name, field in named.items()})
        primary = ("loss", metric) if metric else ("loss",)
        yield Unit(metrics, primary=primary, outputs=lambda: self._outputs(directory, seed, result["test_set"]))

    def _run(self, seed: int, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stored = directory.with_suffix(".yaml")
        stored.write_text(json.dumps(dict(self.values)), encoding="utf-8")  # JSON is YAML
        line = [sys.executable, "-P", "-m", "esper", "run", "--plain", "--no-controls"]
        line += ["--config", str(stored), "--seed", str(seed), "--output", str(directory)]
        try:
            done = subprocess.run(
                line,
                cwd=self.place.directory,
                env=self.place.environment,
                capture_output=True,
                text=True,
                timeout=self.place.timeout_s,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise UnitFailedError(f"it took more than {self.place.timeout_s:g} s") from error
        said = done.stderr.strip().splitlines()
        last = said[-1].removeprefix("esper: ") if said else f"esper run ended with {done.returncode}"
        if done.returncode == _WRONG_INPUT and not (directory / "config.yaml").exists():  # it never began
            raise ConfigError(f"{self.name}: {last}")
        if done.returncode:
            raise UnitFailedError(last)

    def _outputs(self, directory: Path, seed: int, test_set: dict[str, Any]) -> Outputs | None:
        """What the exported model says of the test samples; None where they, or its graph, are not to be had."""
        path = directory / "model" / "model.pt2"
        if not path.is_file():
            return None
        known = {
            name: self.values[name]
            for name in ("label", "task", "layout", "host_settings")
            if self.values.get(name) is not None
        }
        host = self.values.get("host")
        samples = load_task(
            self.values.get("data", "digits"), seed, None if host is None or ":" in host else host, **known
        ).test
        if fingerprint(samples)["digest"] != test_set["digest"]:
            return None
        model = torch.export.load(path).module()
        with torch.no_grad():
            found = torch.cat([model(chunk) for chunk in samples.x.split(_CHUNK)])
        return Outputs(test_set["digest"], [found.numpy()])


def configuration(name: str, values: Mapping[str, Any], place: Place, runs: Path, *, told: str) -> Configuration:
    """A configuration as a subject.

    Args:
        name: for people.
        values: all options that describe the run, without :data:`PER_UNIT`.
        place: where it is run.
        runs: see :class:`Configuration`.
        told: tells it from others: all that describes the run, whether it was written down or is a default.
    """
    return Configuration(name, values, place, runs, hashlib.sha256(told.encode()).hexdigest()[:16])
