"""Runs the user's ``evaluate`` without disturbing the run, and cuts what it returns into its parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import EvaluationError
from esper.contracts.reports import Evaluation
from esper.runtime.judging.worth import Gain, Split, paired_gain, split_samples
from esper.runtime.state.random_state import preserved_random_state
from esper.runtime.training.ranks import Ranks

FEW_GATE_SAMPLES = 500

ELSEWHERE = 776_531_419
"""A seed that nobody has used."""


@dataclass(frozen=True)
class Measurement:
    """A checked evaluation.

    Attributes:
        losses: float64 ``[n]`` on the CPU.
        correct: float64 ``[n]``; None if the task has no metric.
        groups: int64 ``[n]``, or None.
        counted: bool ``[n]``, whether a sample counts in the metric; None if all do.
    """

    losses: Tensor
    correct: Tensor | None
    groups: Tensor | None
    counted: Tensor | None = None

    def loss(self, part: Tensor) -> float:
        """Mean loss of a part."""
        return float(self.losses[part].mean())

    def metric(self, part: Tensor) -> float | None:
        """Mean of the metric over a part; None if the task has none, or no sample of the part has one."""
        if self.correct is None:
            return None
        if self.counted is not None:
            part = part[self.counted[part]]
        return float(self.correct[part].mean()) if part.numel() else None

    def to_dict(self) -> dict[str, Any]:
        """The measurement as plain values; ``Measurement(**saved)`` is the inverse."""
        return {**vars(self)}

    def gain_over(self, reference: "Measurement", part: Tensor) -> Gain:
        """Mean paired improvement in loss over ``reference`` on a part."""
        groups = None if self.groups is None else self.groups[part]
        return paired_gain(self.losses[part], reference.losses[part], groups)


def against_twin(result: Measurement, twin: Measurement, part: Tensor) -> dict[str, Any]:
    """What the grow gate asks about a model and its twin, measured on one part of the samples."""
    metric, twin_metric, gain = result.metric(part), twin.metric(part), result.gain_over(twin, part)
    return {
        "twin_z": gain.z,
        "gain": gain.mean,
        "gain_se": gain.error,
        "has_metric": metric is not None or twin_metric is not None,
        "metric_gain": None if metric is None or twin_metric is None else metric - twin_metric,
        "gate_loss": result.loss(part),
        "twin_gate_loss": twin.loss(part),
    }


def without_it(result: Measurement, ablated: Measurement, part: Tensor) -> dict[str, float | None]:
    """What a graft is worth to a model that leans on it, measured on one part of the samples."""
    gain = result.gain_over(ablated, part)
    return {"ablation_z": gain.z, "ablation_gain": gain.mean, "ablation_gain_se": gain.error}


class Judge:
    """Holds the user's ``evaluate`` and the split of its samples.

    Args:
        model: the model to evaluate.
        evaluate: ``evaluate(model) -> Evaluation``; called twice here.
        seed: of the split.
        ranks: who judges together.
        is_sharded: whether each rank evaluates samples of its own; else all evaluate the same, and rank 0 is believed.

    Samples whose metric is not finite at the start, as where it is not defined for them, never count in it. What is not
    finite later does: it is what the model has come to, and no gate is passed with it.

    Attributes:
        metric: its name; None if the task has none.
        num_not_finite: losses that are not finite at the start.
        num_without_metric: samples that are left out of the metric.

    Raises:
        EvaluationError: if it returns no sample losses, or other ones the second time.
    """

    _counted: Tensor | None = None
    metric: str | None = None

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[nn.Module], Evaluation],
        seed: int,
        ranks: Ranks,
        *,
        is_sharded: bool = False,
    ) -> None:
        self._model, self._evaluate, self._ranks, self._is_sharded = model, evaluate, ranks, is_sharded
        first = self.measure()
        with preserved_random_state(ELSEWHERE):  # what draws at random must not seem repeatable
            second = self.measure()
        if not torch.allclose(first.losses, second.losses, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise EvaluationError(
                "evaluate gave other losses for the same model when it was called again. Use a fixed order without "
                "shuffling, and no random augmentation; the model is already in eval mode."
            )
        self.split: Split = split_samples(first.losses.numel(), first.groups, seed)
        self.num_samples = first.losses.numel()
        self.num_not_finite = int((~torch.isfinite(first.losses)).sum())
        has_metric = torch.ones(()) if first.correct is None else torch.isfinite(first.correct)
        self.num_without_metric = int((has_metric == 0).sum())
        if self.num_without_metric:
            self._counted = has_metric

    def measure(self) -> Measurement:
        """Evaluate the model as it is: in eval mode, without gradients, modes and random state restored after."""
        modes = {module: module.training for module in self._model.modules()}
        try:
            self._model.eval()
            with torch.no_grad(), preserved_random_state():
                result = self._evaluate(self._model)
        finally:
            for module, mode in modes.items():
                module.training = mode
        measured = self._checked(self._of_all(result))
        self.metric = None if result.correct is None else str(result.metric)
        return measured

    def _of_all(self, result: Any) -> Any:
        """What the ranks have found together."""
        if not self._ranks.are_several or not isinstance(result, Evaluation):
            return result
        names = ("losses", "correct", "groups")
        mine: dict[str, Any] = {
            name: _vector(values, name) for name in names if (values := getattr(result, name)) is not None
        }
        if not self._is_sharded:
            return replace(result, **self._ranks.same(mine, "an evaluation"))
        every = self._ranks.gather(mine, "an evaluation")
        together: dict[str, Any] = {name: torch.cat([one[name] for one in every]) for name in mine}
        return replace(result, **together)

    def _checked(self, result: Any) -> Measurement:
        if not isinstance(result, Evaluation):
            raise EvaluationError(
                f"evaluate returned a {type(result).__name__}. Return esper.Evaluation(losses=[n], correct=[n])."
            )
        losses = _vector(result.losses, "losses").double()
        if losses.dim() != 1 or losses.numel() < 10:
            raise EvaluationError(
                f"evaluate returned losses of shape {tuple(losses.shape)}. Return one loss per held-out sample, at "
                "least 10 of them (for cross entropy: reduction='none'), not their mean."
            )
        expected = getattr(self, "num_samples", losses.numel())
        if losses.numel() != expected:
            raise EvaluationError(f"evaluate returned {losses.numel()} losses after {expected} at the start.")
        correct = None if result.correct is None else _vector(result.correct, "correct").double()
        groups = None if result.groups is None else _vector(result.groups, "groups").long()
        for name, values in (("correct", correct), ("groups", groups)):
            if values is not None and values.shape != losses.shape:
                raise EvaluationError(
                    f"evaluate returned {name} of shape {tuple(values.shape)} for {losses.numel()} losses."
                )
        if groups is not None and groups.unique().numel() < 10:
            raise EvaluationError("evaluate returned fewer than 10 groups: too few to be split into three parts.")
        return Measurement(losses, correct, groups, self._counted)


def _vector(values: Any, name: str) -> Tensor:
    """Numbers on the CPU.

    Raises:
        EvaluationError: if they are none.
    """
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise EvaluationError(
            f"evaluate returned {name} that are no numbers: {values!r:.80} ({error}). Return a tensor, an array or a "
            "list of floats."
        ) from error
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise EvaluationError(
            f"evaluate returned {name} as a tensor of {tensor.dtype} on {tensor.device}, {tensor.layout}. Return real "
            "numbers that can be read one by one."
        )
    return tensor.cpu()
