"""What one training step shows of a model's places, and which of them it never calls."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from esper.contracts.events import Note
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.caches import not_offered, use_none
from esper.kasmina.host.layer import KasminaLayer
from esper.kasmina.host.wrapping import growth_config, traced
from esper.kasmina.places.place import Place
from esper.runtime.record.journal import Journal

A_STEP = "a training step"
NEVER_CALLED = "Never called in "
"""How a note begins that tells of places that were not called."""


class Tracing:
    """Traces the first training step of a run, and evaluations of grown models.

    Args:
        model: the wrapped model.
        journal: where places that were not called are told by name.

    Attributes:
        rows: vectors of channels that each place wrote in the traced step; None before it.
        multiply_adds: of the model's forward passes in that step.
        told: places that were not called, and in what.
        left_out: why places cannot grow, as the first step has shown.
    """

    def __init__(self, model: nn.Module, journal: Journal) -> None:
        self._model, self._journal = model, journal
        self.rows: dict[str, int] | None = None
        self.multiply_adds = 0
        self.told: list[list[str]] = []
        self.left_out: dict[str, str] = {}

    @contextmanager
    def of_a_step(self) -> Iterator[None]:
        """Around a training step; only the first of a session is traced."""
        if self.rows is not None:
            yield
            return
        with traced(self._model) as trace:
            yield
        self.rows, self.multiply_adds = dict(trace.rows), trace.multiply_adds
        names = not_offered(places(self._model), growth_config(self._model).blueprints)
        if names:
            text = (
                "The model decodes with a key-value cache. What mixes tokens is not offered: "
                f"{', '.join(names)}. {use_none(self._model)} before esper.wrap offers it."
            )
            self._journal.write(Note(text=text))
        self.tell(A_STEP, [name for name, calls in trace.calls.items() if not calls])

    @contextmanager
    def of_evaluation(self) -> Iterator[None]:
        """Around ``evaluate``: places that hold a graft are told if it does not call them."""
        called: set[str] = set()
        ends = {
            place.layer_id: module
            for module in self._model.modules()
            if isinstance(module, KasminaLayer)
            for place in module._esper
            if place.is_growing
        }
        with ExitStack() as undo:
            for name, module in ends.items():
                undo.callback(module.register_forward_hook(lambda *_, name=name: called.add(name)).remove)
            yield
        self.tell("evaluate", [name for name in ends if name not in called])

    def why_not(self, place: Place) -> str | None:
        """Why a place cannot grow now, None if it can: it failed at the first step, or was called neither in it nor
        since the last boundary (layers may be skipped at random)."""
        if place.layer_id in self.left_out:
            return self.left_out[place.layer_id]
        if [A_STEP, place.layer_id] in self.told and not any(place.telemetry.turns):
            return "no training step calls it"
        return None

    def tell(self, where: str, names: list[str]) -> None:
        """Write down which places were not called, but for those that were told before."""
        new = [name for name in names if [where, name] not in self.told]
        if new:
            self.told += [[where, name] for name in new]
            listed = ", ".join(map(repr, new))
            self._journal.write(Note(text=f"{NEVER_CALLED}{where}, so that nothing can grow there: {listed}."))

    def state_dict(self) -> dict[str, Any]:
        """What was traced, and what was told."""
        return {
            "rows": self.rows,
            "multiply_adds": self.multiply_adds,
            "told": self.told,
            "left_out": self.left_out,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.rows, self.multiply_adds = state["rows"], state["multiply_adds"]
        self.told, self.left_out = state["told"], state["left_out"]
