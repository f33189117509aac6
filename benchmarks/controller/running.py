"""One run of the exam: a family, a seed and a policy.

Every run is a file of its own, named by all that it follows from. So an exam goes on where it was cut, and whoever is
examined later finds the runs of the others there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.controller.families import Family, parameters, targets_per_parameter
from benchmarks.machine import machine
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.evaluation.gains import fingerprint
from esper.evaluation.pool import Tell
from esper.learning.episodes import STRETCHES, Episode, frontier, loss_of, prepared
from esper.tamiyo.policies import LEARNED, make_policy
from esper.whole_file import write_whole

Run = dict[str, Any]
DATA = "data"
"""Folder of the files of the data, within that of the runs."""

NEVER, HEURISTIC, AGAIN = "never", "heuristic", "heuristic-again"
"""The last is the heuristic with other random streams: a controller that is as good, and none better."""

OTHER_STREAMS = 10_000
"""Added to the seed of growth there."""

FORMAT = 1
"""Of a file; raised where older runs do not count any more."""


@dataclass(frozen=True)
class Job:
    """A run that is asked for.

    Args:
        family: what is trained.
        seed: deals data, first weights and batches.
        policy: name of who decides.
        weights: digest of the weights that it decides by; empty where it has none.
        growth: settings that are not the defaults.
        folder: of all runs.
    """

    family: Family
    seed: int
    policy: str
    weights: str
    growth: Mapping[str, Any]
    folder: Path

    @property
    def path(self) -> Path:
        """Of its file: weights count by their bytes, whatever their file is called."""
        asked = {
            "format": FORMAT,
            "family": asdict(self.family),
            "policy": self.policy.partition(":")[0],
            "weights": self.weights,
            "growth": {} if self.policy == NEVER else dict(self.growth),
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / self.family.name / f"{self.seed}-{self.policy.partition(':')[0]}-{digest}.json"


def weights_of(policy: str) -> str:
    """Digest of the weights that a policy decides by; empty where it has none.

    Raises:
        ConfigError: if there is no such policy, or its weights cannot be used: the heuristic would decide in its place.
    """
    if policy == AGAIN:
        return ""
    make_policy(policy, GrowthConfig())
    if policy.partition(":")[0] != LEARNED.rstrip(":"):
        return ""
    from esper.tamiyo.learned.policy import SHIPPED
    from esper.tamiyo.learned.weights import load

    path = Path(policy.removeprefix(LEARNED)) if policy.startswith(LEARNED) else SHIPPED
    load(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def found(job: Job) -> Run | None:
    """The run, if its file is there.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        run: Run = json.loads(job.path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{job.path} is no run that can be read: {error}. Delete it to compute it anew.") from None
    return run


def work(job: Job, tell: Tell) -> str:
    """Compute a run in a process of its own, and keep it; what is told of it is a few words."""
    torch.set_num_threads(1)
    run = done(job)
    write_whole(job.path, json.dumps(run | {"machine": machine()}).encode())
    return f"test loss {run['loss']:.4g}, kept {run['kept']} of {run['tried']}"


def done(job: Job) -> Run:
    """Train to the end.

    Returns:
        ``loss`` on the test samples; ``flops`` of all of it and ``probe_flops`` of arms and judging; ``host`` and
        ``parameters`` before and after; how many grafts were ``tried`` in an arm, and ``kept``; ``steps``, and
        ``targets`` for each parameter; ``test``, a digest of the samples. Of the host alone also ``frontier``: FLOPs
        and losses of its runs of other lengths.
    """
    again = job.policy == AGAIN
    config = GrowthConfig(**{"seed": job.seed + again * OTHER_STREAMS} | dict(job.growth))
    practice = job.family.practice(job.seed, job.folder / DATA)
    run = prepared(practice, config, make_policy(HEURISTIC if again else job.policy, config))
    run.finish()
    session, loss = run.session, loss_of(run.model, practice.task)
    reports, host = session.field_reports, parameters(practice.task)
    fossils = [one for one in reports if one.outcome == "FOSSILIZED"]
    result = {
        "family": job.family.name,
        "seed": job.seed,
        "policy": job.policy,
        "weights": job.weights,
        "loss": loss,
        "flops": float(session.train_flops),
        "probe_flops": float(session.probe_flops),
        "host": host,
        "parameters": host + sum(one.parameters for one in fossils),
        "tried": sum(one.outcome != "CANCELLED" for one in reports),
        "kept": len(fossils),
        "blueprints": [[one.blueprint, one.outcome] for one in reports],
        "steps": practice.steps,
        "targets": targets_per_parameter(practice),
        "test": fingerprint(practice.task.test),
    }
    if job.policy == NEVER:
        alone = frontier(practice, Episode(loss, result["flops"], host), STRETCHES)
        result["frontier"] = {"flops": list(alone.flops), "losses": list(alone.losses)}
    return result


def jobs(
    families: Sequence[Family],
    seeds: Sequence[int],
    policies: Mapping[str, str],
    growth: Mapping[str, Any],
    where: Path,
) -> dict[str, Job]:
    """All that are asked for, seed by seed, so that what is there first are whole seeds.

    Args:
        families, seeds: of the exam.
        policies: digests of their weights, by name.
        growth: settings that are not the defaults.
        where: folder of the runs.
    """
    return {
        f"{family.name}/{seed}/{policy}": Job(family, seed, policy, weights, growth, where)
        for seed in seeds
        for family in families
        for policy, weights in policies.items()
    }
