"""A host that trains with a graft between two sound ones, and a value that is put somewhere into it."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.grafts.guard import FOSSIL_FAULT, LIVE_FAULT
from esper.kasmina.places.grafting import advance
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import grow, host_grads, mlp, place_of, transition_to, wrapped

EARLY = (State.GERMINATED, State.TRAINING)
FALLING = (State.CULLED, State.CANCELLED)
COUNTED = (*sorted(LIVE), State.FOSSILIZED, *FALLING)
"""States in which a forward pass has the graft; in CULLED and CANCELLED it is blended out."""

STATES = (*EARLY, *COUNTED)
PRECISIONS = {
    "float32": torch.float32,
    "autocast": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
SEED, LIFECYCLE = 1, 2
NEIGHBOURS = {0: 1, 3: 3}
"""Lifecycles of the sound grafts, by seed."""

STEPS = 3
MARK = 64.0
"""First bias of the graft that emits."""

Seen = dict[str, Tensor]


class Emission(Function):
    """Identity, but for the graft with the mark: there its output, or the gradient that it passes on, is a value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(delta: Tensor, is_marked: Tensor, what: str, value: float) -> Tensor:
        return torch.where(is_marked, value, delta) if what == "graft output" else delta.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what, ctx.value = inputs[2:]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (is_marked,) = ctx.saved_tensors
        value = ctx.value if ctx.what == "graft gradient" else 0.0
        return torch.where(is_marked, value, grads[0]), None, None, None


@dataclass(frozen=True)
class Emitting(BottleneckMLP):
    """A bottleneck whose weights are sound."""

    id: ClassVar[str] = "emitting"

    what: str = "graft gradient"
    value: str = "0"

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        is_marked = params["b1"][0] == MARK
        return Emission.apply(super().delta(params, x), is_marked, self.what, float(self.value))


class Subject:
    """A host in training.

    Args:
        state: of the seed in the middle; None leaves it dormant, and is the same without it.
        precision: of ``PRECISIONS``.
        is_bare: whether there is no Esper at all.
        reads: what the grafts read.
        learns: whether grafts are more than the identity, and train.
        emission: what the graft in the middle emits, and its value.
    """

    def __init__(
        self,
        state: State | None,
        precision: str,
        reads: str = "chunk",
        *,
        is_bare: bool = False,
        learns: bool = True,
        emission: tuple[str, str] | None = None,
    ) -> None:
        self.state, self.precision, self.is_bare = state, precision, is_bare
        self.dtype = PRECISIONS[precision]
        host = mlp(6, 8, 8, 4).to(self.dtype)
        self.model: nn.Sequential = host if is_bare else wrapped(host, {"2": 4})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        self.incoming: float | None = None
        self.model[2].register_forward_hook(self._hook)
        generator = torch.Generator().manual_seed(0)
        self.batches = [torch.randn(16, 6, generator=generator).to(self.dtype) for _ in range(STEPS)]
        self.target = torch.randint(0, 4, (16,), generator=generator)
        if is_bare:
            return
        self.place = place_of(self.model, "2")
        settings: dict[str, Any] = {"blueprint": "bottleneck_mlp", "reads": reads, "hidden": 3}
        if emission:
            settings |= {"blueprint": Emitting.id, "what": emission[0], "value": emission[1]}
        scale = 0.3 if learns else None
        for seed, lifecycle in NEIGHBOURS.items():
            grow(self.place, seed, lifecycle=lifecycle, scale=scale, **settings)
        if state is not None:
            until = State.FINE_TUNING if state in FALLING else state
            grow(self.place, SEED, until, lifecycle=LIFECYCLE, scale=scale, **settings)
        if state in FALLING:
            transition_to(self.place, SEED, state)
        if state is State.TRAINING:
            self.place.incubation.begin(self.place.arena.grafts[LIFECYCLE], "pseudo_residual", 0, 0.01)
        if emission and state in COUNTED:
            self.params["b1"][0] = MARK
        SlotOptimizer([self.place], self.optimizer, lambda: 0.01 if learns else 0.0, 0.0)

    @property
    def bit(self) -> int:
        """Of the fault that the graft can have."""
        return 0 if self.state not in COUNTED else FOSSIL_FAULT if self.state is State.FOSSILIZED else LIVE_FAULT

    @property
    def faults(self) -> list[int]:
        return self.place.state.fault.tolist()

    @property
    def bytes_N(self) -> Tensor:
        """Of the graft in the middle, wherever they are."""
        if self.state is State.TRAINING:
            return self.place.incubation.get_buffer(f"params_{LIFECYCLE}")
        arena = self.place.arena
        graft = arena.grafts.get(LIFECYCLE)
        return arena.fossil_bytes(0)[0] if graft is None else arena.params_of(graft).detach()

    @property
    def params(self) -> dict[str, Tensor]:
        """The same by name."""
        arena = self.place.arena
        graft = arena.grafts.get(LIFECYCLE) or arena.fossils[0][0]
        return graft.unflatten(self.bytes_N)

    @property
    def is_finite(self) -> bool:
        """Whether its bytes are."""
        return bool(torch.isfinite(self.bytes_N).all())

    def slot(self, name: str) -> Tensor:
        """What the graft's optimizer remembers."""
        if self.state is State.TRAINING:
            return self.place.incubation.get_buffer(f"{name}_{LIFECYCLE}")
        return getattr(self.place.arena, name)[self.place.arena.grafts[LIFECYCLE].slot]

    def step(self, x: Tensor) -> Seen:
        """One training step; what there is to see of the host and of the neighbours."""
        x = x.clone().requires_grad_()
        with self._autocast():
            output = self.model(x)
        F.cross_entropy(output.to(torch.promote_types(output.dtype, torch.float32)), self.target).backward()
        seen = {"output": output.detach(), "dx": x.grad, **host_grads(self.model)}
        self.optimizer.step()
        self.optimizer.zero_grad()
        seen |= {f"new {name}": one.detach().clone() for name, one in self.host()}
        if not self.is_bare:
            self.place.incubation.learn(LIFECYCLE)
            advance(self.place)
            grafts = self.place.arena.grafts
            for lifecycle in NEIGHBOURS.values():
                seen[f"neighbour {lifecycle}"] = self.place.arena.params_of(grafts[lifecycle]).detach().clone()
        return seen

    def host(self) -> list[tuple[str, Tensor]]:
        """The host's parameters."""
        return [(name, one) for name, one in self.model.named_parameters() if "_esper" not in name]

    def train(self) -> list[Seen]:
        return [self.step(x) for x in self.batches]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "autocast" else nullcontext()

    def _hook(self, module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        if self.incoming is not None:
            y.register_hook(self._spoiled)

    def _spoiled(self, grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[3, 2] = self.incoming
        return grad


def differing(one: Seen, other: Seen) -> list[str]:
    """Names of what is not the same to the byte; only what both have is compared."""
    return [name for name in one.keys() & other.keys() if not torch.equal(_bits(one[name]), _bits(other[name]))]


def not_finite(seen: Seen) -> list[str]:
    return [name for name, value in seen.items() if not torch.isfinite(value).all()]


def _bits(values: Tensor) -> Tensor:
    """Equal where numbers are, where both are nan too."""
    return torch.nan_to_num(values.double(), nan=1e300, posinf=math.inf, neginf=-math.inf)
