"""Rollouts: episodes in which a network chooses, played in processes, each with one thread."""

# A actions

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from esper.contracts.config import GrowthConfig
from esper.evaluation.pool import each
from esper.learning.arrays import Arrays, padded
from esper.learning.env import GrowthEnv
from esper.learning.generated import Practice
from esper.tamiyo.learned.network import Shape, TamiyoNetwork

Weights = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True)
class Job:
    """One task to play.

    Args:
        seed: of the task.
        stream: seed of what is chosen.
        episodes: on the task.
        shape: of the network.
        weights: of the network, by name.
        config: how runs may grow.
        make_practice: the task of a seed; a function of a module where there are processes.
        folder: for losses of hosts alone.
    """

    seed: int
    stream: int
    episodes: int
    shape: Shape
    weights: Weights
    config: GrowthConfig
    make_practice: Callable[[int], Practice]
    folder: Path


class Step(NamedTuple):
    """A boundary at which was chosen.

    Args:
        seen: what there was to see.
        choice: index in ``[2 + A]``.
        log_probability: of the choice.
        value: what the network expected to be saved.
    """

    seen: Arrays
    choice: int
    log_probability: float
    value: float


@dataclass(frozen=True)
class Trajectory:
    """An episode.

    Args:
        steps: its boundaries.
        saved: the reward, all of it at the end.
        flops: relative to the run that never grew.
        tried: grafts that were tried.
        adopted: those that beat their twins.
        fault: why the run could not go on; None if it was played to its end. It is not learned from then.
    """

    steps: Sequence[Step]
    saved: float = 0.0
    flops: float = 1.0
    tried: int = 0
    adopted: int = 0
    fault: str | None = None


def weights_of(network: TamiyoNetwork) -> Weights:
    """As plain arrays, which are copied into another process."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def rollouts(jobs: Sequence[Job], workers: int) -> Iterator[Trajectory]:
    """Play tasks; what comes does not depend on the number of workers.

    Args:
        jobs: the tasks.
        workers: processes; 1 plays in this one.

    Returns:
        Trajectories in the order of jobs. A job whose process fails gives one with a fault for all of its episodes.
    """
    if workers == 1:
        with _one_thread():
            for job in jobs:
                yield from play(job)
        return
    found: dict[str, list[Trajectory]] = {}
    for heard in each(_work, {str(index): job for index, job in enumerate(jobs)}, min(workers, max(1, len(jobs)))):
        if heard.kind == "done":
            found[heard.key] = heard.value
        elif heard.kind == "failed":
            found[heard.key] = [Trajectory([], fault=heard.value)]
    for index in range(len(jobs)):
        yield from found[str(index)]


def play(job: Job) -> list[Trajectory]:
    """The episodes of a task."""
    network = TamiyoNetwork(job.shape).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in job.weights.items()})
    generator = torch.Generator().manual_seed(job.stream)
    env = GrowthEnv(job.config, job.make_practice, job.folder)
    try:
        return [_played(env, job.seed, network, generator) for _ in range(job.episodes)]
    finally:
        env.close()


def _work(job: Job, tell: Callable[[Any], Any]) -> list[Trajectory]:
    torch.set_num_threads(1)
    return play(job)


@torch.no_grad()
def _played(env: GrowthEnv, seed: int, network: TamiyoNetwork, generator: torch.Generator) -> Trajectory:
    seen, _ = env.reset(seed=seed)
    steps: list[Step] = []
    while True:
        judged = network(padded([seen]))
        choice = int(torch.multinomial(judged.choice[0].exp(), 1, generator=generator))
        if seen["is_action"].any():  # else there was no choice, and nothing to learn
            steps.append(Step(seen, choice, float(judged.choice[0, choice]), float(judged.value[0])))
        seen, reward, terminated, truncated, info = env.step(choice)
        if truncated:
            return Trajectory(steps, fault=info["fault"])
        if terminated:
            return Trajectory(steps, reward, info["flops"], info["tried"], info["adopted"])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
