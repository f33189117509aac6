"""Training steps as CUDA graphs, captured anew when what grows has changed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from esper.contracts.errors import ConfigError
from esper.kasmina.host.anchoring import places


class CapturedStep:
    """A training step for ``Session(train_step=...)`` whose forward and backward passes are replayed.

    A graph holds for batches of the same shapes, as long as the same grafts are there; how far they are blended in it
    reads when it runs. After every change one step is made eagerly and the next one is captured. While seeds train in
    isolation, or somebody wants to know what a graft adds, all steps are eager. The optimizer steps outside the graph.

    Args:
        model: a wrapped model, on a GPU, in training mode.
        loss: ``loss(model, batch)``, a scalar; it must not wait for the device.
        optimizer: of the model's parameters.

    Raises:
        ConfigError: if the model is not on a GPU, or not wrapped.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        first = next(iter(places(model)), None)
        if first is None:
            raise ConfigError("CapturedStep takes a model with seeds: call esper.wrap first.")
        device = first.arena.slots.device
        if device.type != "cuda":
            raise ConfigError(
                f"CapturedStep needs a GPU, and the model is on {device}. Move it, or give Session a loss."
            )
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._placed = partial(Tensor.to, device=device, non_blocking=True)
        self._called, self._stream = first.arena.activities[0].called, torch.cuda.Stream(device)
        self._seen: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._grads: list[tuple[Tensor, Tensor]] = []

    def __call__(self, batch: Any) -> Tensor:
        """A step on a batch, whose tensors are put on the GPU; returns the loss, detached."""
        leaves, structure = tree_flatten(tree_map_only(Tensor, self._placed, batch))
        shapes = [(one.shape, one.dtype) if isinstance(one, Tensor) else one for one in leaves]
        key = (self._called.generation, structure, shapes)
        if self._called.watched or key != self._seen or _get_current_dispatch_mode() is not None:
            self._graph, self._grads = None, []
            loss = self._run(tree_unflatten(leaves, structure))
            self._seen = (self._called.generation, structure, shapes)
        else:
            if self._graph is None:
                self._capture(tree_unflatten(leaves, structure))
            loss = self._replay(leaves)
        self._optimizer.step()
        return loss

    def _run(self, batch: Any) -> Tensor:
        """Eagerly; on the stream of the graph, as capturing wants it."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._optimizer.zero_grad()
            loss = self._loss(self._model, batch)
            loss.backward()
        current.wait_stream(self._stream)
        return loss.detach()

    def _capture(self, batch: Any) -> None:
        self._inputs = tree_map_only(Tensor, torch.clone, batch)
        self._optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            loss = self._loss(self._model, self._inputs)
            loss.backward()
        self._graph, self._static_loss = graph, loss.detach()
        self._grads = [(one, one.grad) for one in self._model.parameters() if one.grad is not None]

    def _replay(self, leaves: list[Any]) -> Tensor:
        assert self._graph is not None
        for static, given in zip(tree_flatten(self._inputs)[0], leaves, strict=True):
            if isinstance(static, Tensor):
                static.copy_(given)
        self._graph.replay()
        for parameter, grad in self._grads:
            parameter.grad = grad
        return self._static_loss.clone()
