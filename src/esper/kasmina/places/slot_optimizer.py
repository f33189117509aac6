"""Steps live grafts, at the moment the user's optimizer steps the host.

Every slot has its own AdamW: a slot used late in a run would get updates of several times the learning rate from an
optimizer that counts steps per parameter, weight decay would move frozen grafts, and some optimizers refuse
one-dimensional parameters or couple neighbours.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.kasmina.kernels.adamw.ops import step_adamw
from esper.kasmina.kernels.adamw.reference import Rows
from esper.kasmina.kernels.capture import is_capturing
from esper.kasmina.places.before_update import before_update
from esper.kasmina.places.place import Place


class SlotOptimizer:
    """Vectorised AdamW over the slots of all places, hooked before the user's optimizer.

    Args:
        places: of the wrapped model.
        optimizer: the user's; it must hold the arenas, so that gradient scalers and clipping see them.
        learning_rate: called at every step, gives the grafts' learning rate.
        weight_decay: decoupled.
        by_family: whether families train at their own multiples of the learning rate.

    Raises:
        ConfigError: if the optimizer does not hold every arena, was built for another model, or needs a closure.
    """

    def __init__(
        self,
        places: Iterable[Place],
        optimizer: Optimizer,
        learning_rate: Callable[[], float],
        weight_decay: float,
        *,
        by_family: bool = False,
    ) -> None:
        self._places, self._by_family = list(places), by_family
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            name = type(optimizer).__name__
            raise ConfigError(f"{name} evaluates the model inside its step (closure). Use an optimizer without one.")
        frozen = [place.layer_id for place in self._places if not place.arena.slots.requires_grad]
        if frozen:
            raise ConfigError(
                f"requires_grad is off for the grafts of {', '.join(map(repr, frozen[:3]))}, as happens when layers "
                "are frozen after esper.wrap. Freeze them before, or leave those places out of layers."
            )
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [place.layer_id for place in self._places if id(place.arena.slots) not in held]
        if missing:
            raise ConfigError(
                f"The optimizer does not hold the grafts of {', '.join(map(repr, missing[:3]))}. Call esper.wrap "
                "first, then build the optimizer from model.parameters(). If several optimizers share them out, give "
                "Session all: optimizer=[muon, adamw]."
            )
        self._handle = before_update(optimizer, self._step)

    def detach(self) -> None:
        """Stop stepping grafts."""
        self._handle.remove()

    @torch.no_grad()
    def _step(self, optimizer: Optimizer) -> None:
        self._refuse_replays()
        # Fused optimizers under a gradient scaler get gradients that are still multiplied by its scale.
        scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        grads: list[tuple[Place, Tensor]] = []
        for place in self._places:
            grad = place.arena.slots.grad
            if grad is not None:
                place.arena.slots.grad = None
                grads.append((place, grad if scale is None else grad / scale))
        if grads:
            skip = None if found_inf is None else found_inf > 0
            step_slots(grads, self._learning_rate(), self._weight_decay, skip, by_family=self._by_family)

    def _refuse_replays(self) -> None:
        """Refuse to step where a CUDA graph leaves out what grows."""
        if is_capturing():
            raise ConfigError(
                "optimizer.step is being captured in a CUDA graph. Esper looks at every step of it: capture the "
                "forward and the backward pass alone, or train with esper.integrations.cuda_graphs.CapturedStep."
            )
        if any(place.arena.activities[0].called.is_stale for place in self._places[:1]):
            raise ConfigError(
                "Seeds have changed since the CUDA graph was captured that training replays, and it leaves that out. "
                "Capture it anew after every transition, or train with esper.integrations.cuda_graphs.CapturedStep, "
                "which does."
            )


@torch.no_grad()
def step_slots(
    grads: Sequence[tuple[Place, Tensor]],
    lr: float,
    weight_decay: float,
    skip: Tensor | None = None,
    *,
    by_family: bool = False,
) -> None:
    """One AdamW step of every slot whose graft trains now; all others keep their bytes.

    Args:
        grads: places, and the gradient of each one's arena, ``[slots * slot size]``.
        lr: learning rate.
        weight_decay: decoupled.
        skip: bool scalar tensor; true where a gradient scaler found infinities.
        by_family: whether families train at their own multiples of ``lr``.

    A slot whose gradient is not finite is left as it is.
    """
    sets = [
        Rows(
            arena.slots_SN(),
            grad.view(arena.num_slots, arena.slot_size),
            arena.exp_avg,
            arena.exp_avg_sq,
            arena.updates,
            arena.slot_trains,
            arena.slot_seeds,
            place.state.lifecycle,
            arena.slot_rates if by_family else None,
        )
        for place, grad in grads
        for arena in [place.arena]
    ]
    step_adamw(sets, lr, weight_decay, skip)
