"""A small task on which growth pays, and runs on it, with and without Esper."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import esper
from esper.contracts.commands import Command
from esper.contracts.events import MEASURED
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from tests.tree_digest import tree_digest

DRY_RUN = 2
"""Passes over copies of the first batch, in which it is tried whether places can grow."""

FEATURES, CLASSES = 4, 3
BATCH, STEPS_PER_EPOCH = 16, 10


@dataclass(frozen=True)
class Data:
    """Samples to learn from, and held-out ones."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def make_data(held_out: int = 300) -> Data:
    """Classes by distance from the origin: two hidden units cannot tell them apart, a few more can."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCH * STEPS_PER_EPOCH + held_out, FEATURES, generator=generator)
    radius = x[:, :2].norm(dim=1)
    y = (radius > 0.8).long() + (radius > 1.5).long()
    n = BATCH * STEPS_PER_EPOCH
    return Data(x[:n], y[:n], x[n:], y[n:])


DATA = make_data()


def host(*, dropout: float = 0.0, batch_norm: bool = False) -> nn.Sequential:
    """A narrow host, its weights drawn from seed 0; the global random state is seeded with 1."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(FEATURES, 2)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(2))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(2, CLASSES))
    torch.manual_seed(1)
    return nn.Sequential(*layers)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def evaluate(model: nn.Module) -> esper.Evaluation:
    logits = model(DATA.held_x)
    return esper.Evaluation(
        losses=F.cross_entropy(logits, DATA.held_y, reduction="none"),
        correct=(logits.argmax(1) == DATA.held_y).float(),
    )


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch; the global random state is not touched."""
    order = torch.randperm(len(DATA.x), generator=torch.Generator().manual_seed(epoch))
    for rows in order.split(BATCH):
        yield DATA.x[rows], DATA.y[rows]


def growing(**settings: Any) -> esper.GrowthConfig:
    """Seeds around the whole model only, and rounds of four epochs in a run of twelve that train all their arms."""
    defaults: dict[str, Any] = {
        "layers": [""],
        "round_fraction": 1 / 3,
        "ramp_fraction": 0.05,
        "compare": "steps",
        "choice": "best",
        "embargo_epochs": 1,
        "max_growth": 20.0,
    }
    return esper.GrowthConfig(**defaults | settings)


@dataclass(frozen=True)
class Script:
    """A policy that germinates at the end of given epochs, whatever it sees.

    Args:
        plan: places by epoch; ``(place, seed)`` where not all seeds are meant.
        blueprint: what to grow.
        hidden: its width.
        trial: how it is tried.
    """

    plan: dict[int, list[str | tuple[str, int]]]
    blueprint: str = "bottleneck_mlp"
    hidden: int = 8
    trial: str = "round"

    def decide(self, observation: Observation) -> list[Command]:
        return [self.command(place) for place in self.plan.get(observation.epoch, [])]

    def command(self, place: str | tuple[str, int]) -> Command:
        layer_id, seed_id = (place, "all") if isinstance(place, str) else place
        settings = {"hidden": self.hidden}
        return Command(
            layer_id, seed_id, State.GERMINATED, blueprint=self.blueprint, settings=settings, trial=self.trial
        )


@dataclass
class Trial:
    """A model in a session, and what it needs to be trained."""

    model: nn.Module
    optimizer: Optimizer
    session: esper.Session
    epochs: int
    loader: Any = None

    @property
    def run(self) -> Any:
        return self.session._run

    @property
    def growth(self) -> Any:
        return self.session._growth

    @property
    def rounds(self) -> Any:
        return self.growth.rounds

    @property
    def keeping(self) -> Any:
        return self.growth.keeping

    @property
    def recovery(self) -> Any:
        return self.growth.recovery

    def state(self, layer_id: str = "", seed: int = 0) -> State:
        """State of a seed in the run's tensors."""
        return State(int(self.run.places[layer_id].state.lifecycle[seed]))

    def live(self, layer_id: str = "") -> Tensor:
        """Parameters of the one live graft of a place."""
        arena = self.run.places[layer_id].arena
        (graft,) = arena.live
        return arena.params_of(graft)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.session.events if event["event"] == kind]

    def train(self, epochs: int | None = None) -> "Trial":
        """Train epoch by epoch, ``epochs`` of them or all that are left."""
        for epoch in range(self.session.epoch, self.epochs if epochs is None else self.session.epoch + epochs):
            for batch in batches(epoch):
                self.session.step(batch)
            self.session.after_epoch()
        return self

    def train_until(self, is_reached: Callable[["Trial"], bool]) -> "Trial":
        """Train from an epoch boundary to the step, or the boundary, after which ``is_reached``."""
        for epoch in range(self.session.epoch, self.epochs):
            for batch in batches(epoch):
                self.session.step(batch)
                if is_reached(self):
                    return self
            self.session.after_epoch()
            if is_reached(self):
                return self
        raise AssertionError("the run ended before that")

    def digest(self) -> str:
        return tree_digest(self.run.snapshots.body())


@dataclass
class Recipe:
    """How to build a trial; the same recipe gives the same bytes."""

    config: esper.GrowthConfig = field(default_factory=growing)
    epochs: int = 12
    model: Callable[[], nn.Module] = host
    optimizer: Callable[[Any], Optimizer] = lambda parameters: AdamW(parameters, lr=0.03)
    scheduler: Callable[[Optimizer, int], Any] | None = CosineAnnealingLR
    policy: Script = Script({1: [""]})
    session: dict[str, Any] = field(default_factory=dict)
    example: Any = None

    def build(self, **session: Any) -> Trial:
        model = esper.wrap(self.model(), self.config, self.example)
        optimizer = self.optimizer(model.parameters())
        steps = self.epochs * STEPS_PER_EPOCH
        arguments: dict[str, Any] = {"loss": loss, "evaluate": evaluate, "planned_steps": steps, "policy": self.policy}
        if self.scheduler is not None:
            arguments["scheduler"] = self.scheduler(optimizer, steps)
        arguments |= self.session | session
        built = esper.Session(model, optimizer, **arguments)
        return Trial(model, optimizer, built, self.epochs, arguments.get("loader"))


def loader() -> esper.BatchLoader:
    """Batches whose position can be saved."""
    return esper.BatchLoader((DATA.x, DATA.y), BATCH, seed=3)


def train_from(trial: Trial, source: esper.BatchLoader) -> Trial:
    """Train to the end, from wherever the session and its loader stand, and finish."""
    for _ in range(trial.session.epoch, trial.epochs):
        for batch in source:
            trial.session.step(batch)
        trial.session.after_epoch()
    trial.session.finish()
    return trial


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without the time of day, and without those that tell of the machine."""
    return [
        {key: value for key, value in event.items() if key != "time"}
        for event in events
        if event["event"] not in MEASURED
    ]
