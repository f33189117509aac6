"""A network that grows for real, as small as it can be: what works here works."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Evaluation
from esper.kasmina.host.export import export
from esper.kasmina.host.wrapping import wrap
from esper.runtime.session import Session
from esper.runtime.training.loader import BatchLoader

EPOCHS, SAVED_EPOCH = 30, 12
CONFIG = GrowthConfig(
    max_rounds=1, compare="steps", capacity_per_round=8.0, max_growth=16.0, blueprints=["bottleneck_mlp"]
)
LEARNED = 0.9
"""Accuracy that takes growth: two hidden units reach about 0.8 on a disc."""

Step = Callable[[], str | None]


def steps() -> Iterator[tuple[str, Step]]:
    """Names of the tests, and the tests in their order: each gives what is wrong, or None."""
    with tempfile.TemporaryDirectory() as directory:
        trial = _Trial(directory)
        yield "a wrapped network computes what the bare one does", trial.wraps
        yield "it trains, and a seed grows, is judged and kept", trial.grows
        yield "a run goes on from its checkpoint to the byte", trial.resumes
        yield "the grown network exports to plain torch", trial.exports


@dataclass
class _Trial:
    """A disc to be told from what is around it, by a network too narrow for it."""

    directory: str
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = torch.rand(1400, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.y = (self.x.square().sum(1) < 0.6).long()

    def wraps(self) -> str | None:
        bare, wrapped = _host(), wrap(_host(), CONFIG)
        return None if torch.equal(bare(self.x), wrapped(self.x)) else "the outputs differ"

    def grows(self) -> str | None:
        self.model, self.session, self.loader = self._begin()
        for _ in range(EPOCHS):
            self._epoch(self.session, self.loader)
            if self.session.epoch == SAVED_EPOCH:
                self.session.save(self.directory)
        self.session.finish()
        outcomes = [report.outcome for report in self.session.field_reports]
        correct = _evaluate(self.model.eval(), self.x[400:], self.y[400:]).correct.float().mean()
        if "FOSSILIZED" not in outcomes:
            return f"nothing grew: {', '.join(outcomes) or 'no seed germinated'}"
        return None if correct >= LEARNED else f"it learned {correct:.0%} only"

    def resumes(self) -> str | None:
        model, session, loader = self._begin()
        session.load(self.directory)
        if session.epoch != SAVED_EPOCH:
            return f"it goes on after epoch {session.epoch}, and was saved after {SAVED_EPOCH}"
        for _ in range(session.epoch, EPOCHS):
            self._epoch(session, loader)
        session.finish()
        ours, theirs = model.state_dict(), self.model.state_dict()
        is_same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        return None if is_same else "the resumed run ended elsewhere"

    def exports(self) -> str | None:
        plain = export(self.model).eval()
        if any(type(module).__module__.startswith("esper.") for module in plain.modules()):
            return "there is something of Esper in it"
        error = float((plain(self.x) - self.model(self.x)).abs().max().detach())
        return None if error < 1e-5 else f"its outputs differ by {error:.1g}"

    def _begin(self) -> tuple[nn.Module, Session, BatchLoader]:
        model = wrap(_host(), CONFIG)
        loader = BatchLoader((self.x[:400], self.y[:400]), 32, seed=0)
        session = Session(
            model,
            torch.optim.AdamW(model.parameters(), lr=1e-2),
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            evaluate=lambda model: _evaluate(model, self.x[400:], self.y[400:]),
            planned_steps=EPOCHS * len(loader),
            loader=loader,
        )
        return model, session, loader

    @staticmethod
    def _epoch(session: Session, loader: BatchLoader) -> None:
        for batch in loader:
            session.step(batch)
        session.after_epoch()


def _host() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> Evaluation:
    with torch.no_grad():
        logits = model(x)
    return Evaluation(losses=F.cross_entropy(logits, y, reduction="none"), correct=logits.argmax(1) == y)
