"""The training FLOPs of a peer: as many as the grown run had, searching and probing included."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.scoring import mean_loss
from esper.evaluation.training import Recipe
from esper.runtime.costs.flops import count

Result = TypeVar("Result")


@dataclass
class Budget:
    """FLOPs that are spent step by step.

    Args:
        total: FLOPs of the whole run.
        recipe: its learning rate, which follows the share of ``total`` that is spent.
        curve: how it learns.

    Attributes:
        spent: FLOPs so far.
    """

    total: int
    recipe: Recipe
    curve: LearningCurve
    spent: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _untold: int = field(default=0, init=False)

    def steps_until(self, share: float, flops: int, reserve: int = 0) -> int:
        """How many steps come closest to having spent a share of the total; at least 0.

        Args:
            share: of the total.
            flops: of a step.
            reserve: FLOPs of other work to come until then.
        """
        return max(0, round((share * self.total - reserve - self.spent) / flops))

    def train(
        self, model: nn.Module, optimizer: Optimizer, source: Iterator[tuple[Tensor, ...]], steps: int, flops: int
    ) -> None:
        """Train for ``steps`` steps of ``flops`` each."""
        model.train()
        for _ in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(min(self.spent, self.total), self.total)
            loss = mean_loss(model, next(source), self.curve.task.precision)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            planned = self._steps + max(1, self.steps_until(1.0, flops))
            self.spent += flops
            self.curve.after_step(model, loss, flops + self._untold, self._steps, planned)
            self._steps, self._untold = self._steps + 1, 0

    def probe(self, work: Callable[[], Result]) -> Result:
        """``work()``, which is done for real, and whose FLOPs are spent."""
        results: list[Result] = []
        flops = count(lambda: results.append(work()))
        self.spent += flops
        self._untold += flops
        return results[0]
