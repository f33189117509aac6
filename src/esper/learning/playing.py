"""Playing an episode: whoever chooses is asked at every boundary, and is told at the end what was saved."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import DataError
from esper.contracts.reports import FieldReport, Observation
from esper.evaluation.growing import Growing
from esper.learning.episodes import (
    Episode,
    Frontier,
    flops_as_never,
    frontier,
    is_adopted,
    loss_of,
    prepared,
    run_episode,
)
from esper.learning.generated import Practice
from esper.tamiyo.learned.actions import Action, legal_actions
from esper.tamiyo.learned.network import STOP, WAIT
from esper.whole_file import write_whole

Choose = Callable[[Observation, Sequence[Action]], int]
"""Waits (0), stops (1), or takes the action with an index: 2 and that."""

KEPT = 64
"""Frontiers that are kept in memory."""


class Steered:
    """A policy that does what a function chooses; where that has stopped, it is asked no more.

    Args:
        config: of the run.
        choose: called where there is something to do.
    """

    def __init__(self, config: GrowthConfig, choose: Choose) -> None:
        self._config, self._choose = config, choose
        self.has_stopped = False
        self.tried = 0

    def decide(self, observation: Observation) -> list[Command]:
        """What the function chooses."""
        actions = [] if self.has_stopped else legal_actions(observation, self._config)
        if not actions:
            return []
        chosen = self._choose(observation, actions)
        self.has_stopped = chosen == STOP
        if chosen in (WAIT, STOP):
            return []
        self.tried += 1
        return [actions[chosen - 2].command(self._config, "chosen in practice")]

    def answered(self, answer: Answer) -> None:
        """What was refused was not done."""
        self.tried -= not answer.accepted


@dataclass(frozen=True)
class Played:
    """What came of an episode.

    Args:
        saved: share of the final test loss of the host alone, at equal total FLOPs.
        flops: of the training with all that was tried, relative to the run that never grew.
        tried: grafts that were tried.
        adopted: those that beat their twins.
    """

    saved: float
    flops: float
    tried: int
    adopted: int


class Frontiers:
    """What the host alone reaches, measured once for every task.

    Args:
        config: how runs may grow.
        folder: where they are kept beyond this process; made if it is not there.
    """

    def __init__(self, config: GrowthConfig, folder: Path | None = None) -> None:
        self._config, self._folder = config, folder
        self._known: OrderedDict[str, Frontier] = OrderedDict()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def of(self, practice: Practice) -> Frontier:
        """That of a task; the first point is the run that never grew.

        Raises:
            EsperError: if its runs cannot go on.
            DataError: if a file of the folder cannot be read.
        """
        config = replace(self._config, seed=practice.seed)
        about = replace(practice, task=None), practice.task.name, config  # type: ignore[arg-type]
        name = f"{practice.seed:08d}-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}"
        found = self._known.pop(name, None) or self._read(name)
        if found is None:
            never = run_episode(practice, config, Steered(config, lambda seen, actions: STOP))
            found = frontier(practice, never)
            self._write(name, found)
        self._known[name] = found
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def _read(self, name: str) -> Frontier | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            told = json.loads(path.read_bytes())
            return Frontier([float(one) for one in told["flops"]], [float(one) for one in told["losses"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} holds no frontier that can be read: {error!r}. Delete it.") from None

    def _write(self, name: str, found: Frontier) -> None:
        path = self._path(name)
        if path is not None:
            write_whole(path, json.dumps({"flops": list(found.flops), "losses": list(found.losses)}).encode())

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.json"


def play(practice: Practice, config: GrowthConfig, choose: Choose, frontiers: Frontiers) -> Played:
    """Train a task to the end while a function chooses; not to the end where that is known from the host alone.

    Where nothing was adopted and nothing can be tried any more, the rest is the run that never grew, to the byte: of a
    lost round nothing stays in the run. A trial in the run itself is trained to the end.

    Args:
        practice: the task.
        config: how it may grow; its seed is the task's.
        choose: is asked at every boundary at which something may be done.
        frontiers: of the same config.

    Raises:
        EsperError: if the run cannot go on.
    """
    config = replace(config, seed=practice.seed)
    policy = Steered(config, choose)
    run = prepared(practice, config, policy)
    for _ in range(run.epochs):
        for batch in run.loader:
            run.session.step(batch)
        run.session.after_epoch()
        if _goes_on_alone(run, practice, config, policy):
            return _as_never(run, practice, policy, frontiers)
    run.session.finish()
    reached = Episode(loss_of(run.model, practice.task), float(run.session.train_flops), 0)
    alone = frontiers.of(practice)
    saved, flops = alone.saved(reached.loss, reached.flops), reached.flops / alone.flops[0]
    return Played(saved, flops, policy.tried, _adopted(run.session.field_reports))


def _goes_on_alone(run: Growing, practice: Practice, config: GrowthConfig, policy: Steered) -> bool:
    reports = run.session.field_reports
    is_open = run.session.step_count / practice.steps <= config.grow_until and policy.tried < config.max_rounds
    if (is_open and not policy.has_stopped) or policy.tried != len(reports):
        return False
    return policy.tried == 0 or (config.trial == "round" and not _adopted(reports))


def _as_never(run: Growing, practice: Practice, policy: Steered, frontiers: Frontiers) -> Played:
    if policy.tried == 0:
        return Played(0.0, 1.0, 0, 0)
    alone = frontiers.of(practice)
    flops = flops_as_never(run, practice, alone.flops[0])
    return Played(alone.saved(alone.losses[0], flops), flops / alone.flops[0], policy.tried, 0)


def _adopted(reports: Sequence[FieldReport]) -> int:
    return sum(map(is_adopted, reports))
