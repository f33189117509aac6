"""Learning by reinforcement: episodes, an update, a checkpoint, again and again. See ``docs/ppo.md``.

Chance follows from the seed and the number of the update alone, so that a checkpoint needs no random state: whatever
goes on from it does as if it had never ended, on the CPU to the byte.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Adam

from esper.checkpoint.packed import Packed
from esper.contracts.errors import CheckpointError, ConfigError
from esper.learning.objective import Batch, improve, outcomes
from esper.learning.ppo_settings import Settings
from esper.learning.rollouts import Job, rollouts, weights_of
from esper.tamiyo.learned.network import TamiyoNetwork
from esper.tamiyo.learned.weights import save
from esper.whole_file import write_whole

CURVES, WEIGHTS, POSITION = "curves.jsonl", "weights.safetensors", "position"
"""Files of the folder: a line for every update; what a controller loads; what a run goes on from."""

Tell = Callable[[dict[str, float]], None]
"""Called with what was measured of an update, by the names of :data:`~esper.learning.ppo_settings.METRICS`."""


def learn(
    network: TamiyoNetwork,
    settings: Settings,
    seeds: Sequence[int],
    folder: Path,
    *,
    updates: int,
    workers: int,
    seconds: float | None = None,
    tell: Tell = lambda told: None,
) -> TamiyoNetwork:
    """A network whose policy has learned from what its choices led to. Goes on where a folder has a checkpoint.

    Args:
        network: what it begins as; it is left as it is.
        settings: how.
        seeds: of the tasks, gone through in their order, and then again.
        folder: for checkpoints, weights and curves; made if it is not there.
        updates: in all, those before a checkpoint among them.
        workers: processes that play; 1 plays in this one.
        seconds: after which no further update begins; None does all.
        tell: hears of each update.

    Raises:
        ConfigError: if a number is too small, or the folder holds another run.
        CheckpointError: if its checkpoint is damaged.
        OSError: if the folder cannot be written.
    """
    if updates < 1 or workers < 1 or not seeds:
        raise ConfigError(
            f"At least one update, worker and seed are needed, not {updates}, {workers} and {len(seeds)}."
        )
    until = None if seconds is None else time.monotonic() + seconds
    run = _Run.at(network, settings, seeds, folder)
    with _board(folder, settings, run.update) as show:
        while run.update < updates and (until is None or time.monotonic() < until):
            told = run.go_on(workers)
            show(run.update, told)
            tell(told)
    return run.network.eval()


@dataclass
class _Run:
    """One that is under way.

    Args:
        network: learns.
        first: what it began as.
        optimizer: of its parameters.
        settings: how.
        seeds: of the tasks.
        folder: for what is written.
        update: how many are done.
    """

    network: TamiyoNetwork
    first: TamiyoNetwork
    optimizer: Adam
    settings: Settings
    seeds: Sequence[int]
    folder: Path
    update: int = 0

    @classmethod
    def at(cls, network: TamiyoNetwork, settings: Settings, seeds: Sequence[int], folder: Path) -> "_Run":
        """A new one, or that of a folder."""
        first = copy.deepcopy(network).eval()
        first.shape = replace(network.shape, chooses_by="policy")
        learns = copy.deepcopy(first)
        run = cls(learns, first, Adam(learns.parameters(), settings.lr, eps=1e-5), settings, seeds, folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / POSITION).exists():
            run._load()
        return run

    def go_on(self, workers: int) -> dict[str, float]:
        """One update, and what was measured."""
        played = list(rollouts(self._jobs(), workers))
        batch, told = Batch.of(played, self.settings), outcomes(played)
        if batch is not None:
            generator = torch.Generator().manual_seed(self._chance(self.settings.tasks))
            told |= improve(self.network, self.first, self.optimizer, batch, self.settings, generator)
        self.update += 1
        self._write(told)
        return told

    def _jobs(self) -> list[Job]:
        settings, weights, begin = self.settings, weights_of(self.network), self.update * self.settings.tasks
        return [
            Job(
                self.seeds[(begin + index) % len(self.seeds)],
                self._chance(index),
                settings.episodes,
                self.network.shape,
                weights,
                settings.config,
                settings.make_practice,
                self.folder / "frontiers",
            )
            for index in range(settings.tasks)
        ]

    def _chance(self, index: int) -> int:
        """Seed of one of the random streams of this update."""
        return int(np.random.SeedSequence([self.settings.seed, self.update, index]).generate_state(1)[0])

    def _about(self) -> dict[str, str]:
        """What must be the same for a run to go on."""
        digest = hashlib.sha256()
        for name, value in weights_of(self.first).items():
            digest.update(name.encode() + value.tobytes())
        return {
            **{name: repr(value) for name, value in self.settings.to_dict().items() if name != "tensorboard"},
            "seeds": hashlib.sha256(repr(list(self.seeds)).encode()).hexdigest(),
            "first weights": digest.hexdigest(),
        }

    def _write(self, told: dict[str, float]) -> None:
        """The line first: of a run that ends in between, what is beyond its checkpoint is dropped."""
        with (self.folder / CURVES).open("a") as file:
            file.write(json.dumps({"update": self.update, **told}) + "\n")
        card = {"made_by": "esper.learning.ppo", "updates": self.update, "settings": self._about(), "last": told}
        unfinished = self.folder / f".{WEIGHTS}"
        save(self.network, unfinished, card)
        unfinished.replace(self.folder / WEIGHTS)
        state = {
            "about": self._about(),
            "update": self.update,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = self.folder / f".{POSITION}"
        Packed.of(state, self.folder).copy_to(unfinished)
        unfinished.replace(self.folder / POSITION)

    def _load(self) -> None:
        path, about = self.folder / POSITION, self._about()
        try:
            state: dict[str, Any] = Packed.at(path).read()
            other = [name for name in about if about[name] != state["about"].get(name)]
            self.update = state["update"]
        except (OSError, ValueError, LookupError, TypeError, CheckpointError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Delete {self.folder}, and begin anew.") from error
        if other:
            raise ConfigError(
                f"{self.folder} holds a run with other {', '.join(other)}. Go on with those, or name another folder."
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        lines = (self.folder / CURVES).read_bytes().splitlines(keepends=True)
        write_whole(self.folder / CURVES, b"".join(lines[: self.update]))


@contextmanager
def _board(folder: Path, settings: Settings, update: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """What shows an update in TensorBoard, if that is asked for."""
    if not settings.tensorboard:
        yield lambda update, told: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"TensorBoard needs {error.name}: pip install 'esper-morphogenetic[tensorboard]', or set tensorboard=False."
        ) from error

    with SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1) as writer:

        def show(update: int, told: dict[str, float]) -> None:
            for name, value in told.items():
                writer.add_scalar(name, value, update)
            writer.flush()

        yield show
