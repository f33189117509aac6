"""Averages the gradients of grafts over ranks.

``DistributedDataParallel`` lays out its buckets once, for the parameters that there are when it is built. It leaves out
the arenas, which are empty then, as a wrapped model asks it to. Their gradients are averaged here, all at once, when a
backward pass is over and before anything clips them.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from esper.kasmina.places.place import Place


class GradientAverage:
    """Watches the arenas of places.

    Args:
        places: of the wrapped model.
        mean_: averages tensors over ranks, in place.

    Attributes:
        handles: take the hooks away.
    """

    def __init__(self, places: Iterable[Place], mean_: Callable[[Sequence[Tensor]], None]) -> None:
        self._places, self._mean = list(places), mean_
        self._pass = -1
        self._carried: Tensor | None = None
        self._is_needed = False
        self.handles: list[RemovableHandle] = [
            place.arena.slots.register_post_accumulate_grad_hook(self._note) for place in self._places
        ]

    @property
    def is_needed(self) -> bool:
        """Whether the last backward pass that something was carried along with had gradients of grafts."""
        return self._is_needed

    def carrying(self, loss: Tensor) -> Callable[[], Tensor]:
        """Average a loss in the exchange at the end of the next backward pass; call what is returned to have it."""
        carried = self._carried = loss.to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        self._is_needed = False

        def end() -> Tensor:
            if self._carried is not None:  # no graft had a gradient
                self._carried = None
                self._mean([carried])
            return carried.to(loss.dtype)

        return end

    def _note(self, _: Tensor) -> None:
        """An arena has a gradient: average all of them at the end of this backward pass."""
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._pass = number
            Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        grads = (place.arena.slots.grad for place in self._places)
        carried = [] if self._carried is None else [self._carried]
        self._carried, self._is_needed = None, True
        self._mean([grad for grad in grads if grad is not None and grad.numel()] + carried)
