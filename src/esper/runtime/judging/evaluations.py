"""Evaluations for a judgement: of the run as it is, by the mean of its weights, without one graft. All are booked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from esper.kasmina.places.lifecycle import seed_range
from esper.kasmina.places.place import Place
from esper.runtime.costs.costs import Costs
from esper.runtime.judging.judge import Judge, Measurement
from esper.runtime.judging.weight_mean import POINTS, WeightMean, batch_norms, renewing, unchanged
from esper.runtime.record.books import Books, Lifecycle
from esper.runtime.state.batches import copy_of
from esper.runtime.state.random_state import preserved_random_state
from esper.runtime.training.trainer import Trainer


class Evaluations:
    """Measures a model.

    Args:
        model: the wrapped model.
        places: its places, by name.
        judge: evaluates it.
        trainer: shows it batches.
        costs: counts what that takes.
        books: gives the books.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Mapping[str, Place],
        judge: Judge,
        trainer: Trainer,
        costs: Costs,
        books: Callable[[], Books],
    ) -> None:
        self._model, self._places, self._judge, self._trainer = model, places, judge, trainer
        self._costs, self._books = costs, books

    def measure(self) -> Measurement:
        """Evaluate the model as it is."""
        measured, flops = self._costs.evaluation(self._judge.measure)
        self._books().judging_flops += flops
        return measured

    def flops(self) -> int:
        """What an evaluation costs; one is made for that if none was counted yet."""
        known = self._costs.evaluation_flops
        return self._costs.evaluation(self._judge.measure)[1] if known is None else known

    def measure_mean(self, mean: WeightMean, batches: Sequence[Any]) -> Measurement:
        """Evaluate by the mean of the weights.

        Batch norms take statistics anew from the last of ``batches``. In a loop of the caller's own nobody can make
        them do so; then models with such norms are judged as they are.
        """
        norms = batch_norms(self._model)
        if not norms:
            with mean.in_place_of(self._model):
                return self.measure()
        if not self._trainer.owns_loop or not mean.count:
            return self.measure()
        with mean.in_place_of(self._model), unchanged(norms), preserved_random_state():
            with renewing(self._model, norms):
                for batch in batches[-POINTS:]:
                    own = copy_of(batch)
                    self._books().judging_flops += self._costs.forward(own, self._trainer.look_at, self._rehearse)
            return self.measure()

    def ablated(self, one: Lifecycle) -> Measurement:
        """Evaluate with one graft at alpha 0."""
        place = self._places[one.layer_id]
        seeds = slice(*seed_range(place, one.seed_id))
        alpha = place.state.alpha[seeds].clone()
        place.state.alpha[seeds] = 0
        try:
            return self.measure()
        finally:
            place.state.alpha[seeds] = alpha

    def _rehearse(self, batch: Any) -> None:
        """A forward pass on a copy of a batch, from which batch norms learn nothing."""
        with renewing(self._model, []):
            self._trainer.look_at(copy_of(batch))
