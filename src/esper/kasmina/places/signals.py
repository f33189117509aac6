"""What grafting strategies look at, read off the host while it trains."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina.grafts.strategies import MAX_WEIGHTS, GraftSignals
from esper.kasmina.places.before_update import before_update
from esper.kasmina.places.grafting import needs_signals
from esper.kasmina.places.place import Place
from esper.shards import whole


class SignalReader:
    """Reads the signals of places where a strategy needs them; all others cost one look-up per step.

    It keeps nothing from one training step to the next.

    Args:
        places: the model's places.
        covered: parameters of the host that each place covers, by ``layer_id`` (``hosts.covered_parameters``).
        optimizer: hooked just before it steps, when gradients are complete.
    """

    def __init__(
        self, places: Iterable[Place], covered: Mapping[str, Sequence[nn.Parameter]], optimizer: Optimizer
    ) -> None:
        self._places, self._covered = list(places), covered
        self._norms: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {}
        self._handle = before_update(optimizer, self._note_norms)

    def detach(self) -> None:
        """Take the hook off the optimizer."""
        self._handle.remove()

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Around a step that is undone: what was noted of the real one stays."""
        norms = dict(self._norms)
        try:
            yield
        finally:
            self._norms = norms

    @torch.no_grad()
    def read(self, place: Place, loss: Tensor | float) -> GraftSignals:
        """The signals of a place in this training step; to be read once, after the optimizer has stepped.

        Args:
            place: one that needs them.
            loss: the training loss of the step, a scalar.
        """
        like = place.state.alpha
        rested = like.new_full((), -1.0)
        parts = [
            whole(parameter.detach()).flatten()[index].to(like)
            for parameter, index in zip(self._covered[place.layer_id], self._indices(place), strict=True)
        ]
        return GraftSignals(
            loss=loss.detach().to(like).reshape(()) if isinstance(loss, Tensor) else like.new_full((), loss),
            gradient_norm=self._norms.pop(place.layer_id, rested),
            weights=torch.cat(parts) if parts else like.new_zeros(0),
        )

    def _indices(self, place: Place) -> list[Tensor]:
        """Which weights of each covered parameter are looked at: at most ``MAX_WEIGHTS``, evenly spaced over all."""
        if place.layer_id not in self._samples:
            parameters = self._covered[place.layer_id]
            total = sum(parameter.numel() for parameter in parameters)
            count = min(total, MAX_WEIGHTS)
            chosen, found, start = torch.arange(count) * total // max(1, count), [], 0
            for parameter in parameters:
                end = start + parameter.numel()
                inside = chosen[(chosen >= start) & (chosen < end)] - start
                found.append(inside.to(parameter.device))
                start = end
            self._samples[place.layer_id] = found
        return self._samples[place.layer_id]

    @torch.no_grad()
    def _note_norms(self, optimizer: Optimizer) -> None:
        self._norms.clear()
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers get gradients still multiplied by it
        for place in self._places:
            if needs_signals(place):
                grads = [p.grad for p in self._covered[place.layer_id] if p.grad is not None]
                like = place.state.alpha
                norms = [_norm(grad).to(like) for grad in grads]
                norm = torch.stack(norms).norm() if norms else like.new_zeros(())
                self._norms[place.layer_id] = norm if scale is None else norm / scale


def _norm(grad: Tensor) -> Tensor:
    grad = grad.coalesce().values() if grad.is_sparse else grad
    return whole(torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)))
