"""Where a place lies in the host."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from esper.blueprints.blueprint import Ports
from esper.contracts.reports import Layout, Piece
from esper.kasmina.geometry import Geometry
from esper.kasmina.outputs import Form


@dataclass(frozen=True)
class Site:
    """Where a place lies in the host.

    Args:
        layer_id: dotted name, ``first:last`` for a span, ``""`` for the whole model.
        kind: ``"model"``, ``"span"``, ``"block"``, ``"layer"`` or ``"colony"``.
        ports: features that grafts read, channels that they write.
        geometry: where both lie in the host's tensors.
        modules: dotted names of the host modules that it covers.
        field: name of the output field that grafts write, if the output has fields and one was named.
        form: what the output is, see :mod:`esper.kasmina.outputs`.
        is_step: whether it is one of several blocks in a row.
        uncached: what would lie around the channels if the model did not decode with a cache, where that may not be
            mixed; None elsewhere.
        argument: position or name of the argument that grafts read.
        is_walked: whether it is a span whose steps are called one by one, and not by their container.
        pieces: of a colony: where it meets the host.
        geometries: of a colony: where what its pieces beside a module read and write lies, by the module's name.
    """

    layer_id: str
    kind: str
    ports: Ports
    geometry: Geometry
    modules: tuple[str, ...]
    field: str | None = None
    form: Form = ("tensor",)
    is_step: bool = False
    uncached: Layout | None = None
    argument: int | str = 0
    is_walked: bool = False
    pieces: tuple[Piece, ...] = ()
    geometries: Mapping[str, Geometry] = dataclasses.field(default_factory=dict)
