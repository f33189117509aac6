"""Collecting: drawn tasks, each trained again and again, every time with another graft tried."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Observation
from esper.evaluation.pool import Tell, each
from esper.learning.episodes import Choose, Decided, Episode, Frontier, Scripted, frontier, run_episode
from esper.learning.generated import Practice, draw
from esper.learning.records import Record, Seen, Tried, path_of, write
from esper.tamiyo.chance import PER_SAMPLE, PER_TOKEN_BESIDE
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned.actions import Action
from esper.tamiyo.learned.network import Padded, TamiyoNetwork
from esper.tamiyo.learned.tokens import tokens
from esper.tamiyo.learned.weights import load

ATTEMPTS = 8
"""To choose something that was not tried at that boundary."""

SECONDS = 0.25
"""Share of the runs of a task in which a second graft follows one that was adopted."""


@dataclass(frozen=True)
class Job:
    """One task to collect from.

    Args:
        seed: of the task.
        config: how it may grow.
        episodes: runs with a graft.
        folder: for the record.
        guide: weights by which half of what is tried is chosen; None chooses all by chance.
    """

    seed: int
    config: GrowthConfig
    episodes: int
    folder: Path
    guide: Path | None = None


def collect(
    folder: Path,
    seeds: Sequence[int],
    config: GrowthConfig,
    *,
    episodes: int,
    workers: int,
    seconds: float | None = None,
    guide: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> int:
    """Write the records of tasks; those that are there already are left as they are.

    Args:
        folder: for them; made if it is not there.
        seeds: of the tasks.
        config: how they may grow; its seed is not used.
        episodes: runs with a graft for each task, beside the host alone and the heuristic.
        workers: processes, each with one thread.
        seconds: after which no more are waited for; None waits for all.
        guide: weights of a controller: every other graft that is tried is one that it holds likely to be adopted, since
            most of those that are drawn are not. None draws all.
        tell: called with a sentence about each.

    Returns:
        How many were written.

    Raises:
        ConfigError: if a number is too small, or the guide cannot be read.
    """
    if guide is not None:
        load(guide)
    if episodes < 1 or workers < 1:
        raise ConfigError(f"At least one episode and one worker are needed, not {episodes} and {workers}.")
    folder.mkdir(parents=True, exist_ok=True)
    left = [seed for seed in seeds if not path_of(folder, seed).exists()]
    jobs = {str(seed): Job(seed, config, episodes, folder, guide) for seed in left}
    written, until = 0, None if seconds is None else time.monotonic() + seconds
    with closing(each(_work, jobs, min(workers, max(1, len(jobs))))) as heard:
        for one in heard:
            if one.kind == "failed":
                tell(f"Task {one.key} is left out: {one.value}")
            elif one.kind == "done":
                written += 1
                tell(f"Task {one.key}: {one.value}")
            if until is not None and time.monotonic() >= until:
                break
    return written


def _work(job: Job, tell: Tell) -> str:
    torch.set_num_threads(1)
    record = collected(job.seed, job.config, job.episodes, None if job.guide is None else load(job.guide)[0])
    write(record, job.folder)
    saved = [one.saved for one in record.tried]
    told = f"{min(saved):+.1%} to {max(saved):+.1%}" if saved else "nothing to try"
    return f"{record.family}, {told}, {record.seconds:.0f} s"


def collected(seed: int, config: GrowthConfig, episodes: int, guide: TamiyoNetwork | None = None) -> Record:
    """What comes of a task; nothing is tried where the run is too short for its host.

    Args:
        seed: of the task.
        config: how it may grow; its seed is the task's.
        episodes: runs with a graft.
        guide: says which grafts are likely to be adopted; None draws all.

    Raises:
        EsperError: if its runs cannot go on.
    """
    begun, practice, config = time.process_time(), draw(seed), replace(config, seed=seed)
    seen: list[Seen] = []
    tried: list[Tried] = []
    heuristic: tuple[float, float] | None = None
    if _has_chance(practice):
        never = run_episode(practice, config, Scripted(config, lambda *what: None, 0))
        seen = _seen(never)
        if seen:
            alone = frontier(practice, never)
            tried = _tried(practice, config, episodes, never, alone, seen, guide)
            own = run_episode(practice, config, HeuristicPolicy(config))
            heuristic = alone.saved(own.loss, own.flops), own.flops / never.flops
    return Record(practice.family, seed, config, seen, tried, heuristic, time.process_time() - begun)


def _tried(
    practice: Practice,
    config: GrowthConfig,
    episodes: int,
    never: Episode,
    alone: Frontier,
    seen: list[Seen],
    guide: TamiyoNetwork | None,
) -> list[Tried]:
    chooser, boundaries = _Chooser(practice.seed, config, guide), [one.boundary for one in seen]
    runs: list[tuple[Tried, Decided]] = []  # each with its first action
    for number in range(episodes):
        grown = [decided for one, decided in runs if one.is_adopted]  # after a lost round places rest for long
        before = chooser.chance.choice(grown) if grown and number >= (1 - SECONDS) * episodes else None
        plan = chooser.plan(boundaries, before, is_guided=number % 2 == 1)
        count = 1 if before is None else 2
        run = run_episode(practice, config, Scripted(config, plan, count), never)
        if len(run.decided) != count:
            continue  # refused, or nothing was left to do
        last, saved = run.decided[-1], alone.saved(run.loss, run.flops)
        where, without = boundaries.index(run.decided[0].boundary), None
        if before is not None:
            where, without = len(seen), next(i for i, (_, known) in enumerate(runs) if known is before)
            seen.append(Seen(last.boundary, last.observation, None))
        one = Tried(where, last.action, without, last.is_adopted, saved, run.flops / never.flops)
        runs.append((one, before or last))
    return [one for one, _ in runs]


class _Chooser:
    """Chooses what is tried, and nothing twice.

    Args:
        seed: of all chance.
        config: of the runs.
        guide: says which grafts are likely to be adopted; None draws all.
    """

    def __init__(self, seed: int, config: GrowthConfig, guide: TamiyoNetwork | None) -> None:
        self.chance, self._config, self._guide = random.Random(seed), config, guide
        self._known: set[tuple[int, int]] = set()

    def plan(self, boundaries: Sequence[int], before: Decided | None, *, is_guided: bool) -> Choose:
        """Something at one boundary; or what was done before, and something else at a later one."""
        first = self.chance.choice(boundaries) if before is None else before.boundary
        later = first + self.chance.randint(2, 8)
        done: list[int] = []

        def choose(boundary: int, observation: Observation, actions: Sequence[Action]) -> int | None:
            is_second = before is not None and bool(done)
            if boundary < (later if is_second else first) or (done and not is_second) or len(done) > 1:
                return None
            done.append(boundary)
            if before is not None and not is_second:
                return before.action
            return self._fresh(boundary, observation, actions, is_guided)

        return choose

    def _fresh(self, boundary: int, seen: Observation, actions: Sequence[Action], is_guided: bool) -> int:
        for _ in range(ATTEMPTS):
            found = self._likely(seen, actions) if is_guided and self._guide is not None else self._any(actions)
            if (boundary, found) not in self._known:
                break
        self._known.add((boundary, found))
        return found

    def _any(self, actions: Sequence[Action]) -> int:
        """A blueprint, then a place, then a size, each as likely as the others of its kind."""
        choice = self.chance.choice
        blueprint = choice(sorted({one.option.blueprint.id for one in actions}))
        fit = [i for i, one in enumerate(actions) if one.option.blueprint.id == blueprint]
        place = choice(sorted({actions[i].place.layer_id for i in fit}))
        return choice([i for i in fit if actions[i].place.layer_id == place])

    def _likely(self, seen: Observation, actions: Sequence[Action]) -> int:
        """Each by the square of its chance of being adopted."""
        assert self._guide is not None
        with torch.no_grad():
            adopt = self._guide(Padded.of([tokens(seen, self._config, actions)])).adopt[0]
        return self.chance.choices(range(len(actions)), adopt.sigmoid().square().tolist())[0]


def _seen(never: Episode) -> list[Seen]:
    return [Seen(boundary, one, never.heuristic[boundary]) for boundary, one in sorted(never.seen.items())]


def _has_chance(practice: Practice) -> bool:
    """Whether the controller would try anything at all; else nothing can be learned from the task."""
    with torch.random.fork_rng(devices=[]):
        parameters = sum(one.numel() for one in practice.task.make_host().parameters())
    per_sample = practice.task.train.y[0].numel() if practice.task.is_text else 1
    targets = practice.steps * practice.batch_size * per_sample
    return targets >= (PER_TOKEN_BESIDE if practice.task.is_text else PER_SAMPLE) * parameters
