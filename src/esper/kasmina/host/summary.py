"""What a wrapped model carries: in words, and as plain values."""

from typing import Any

from torch import nn

from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import is_espers, places
from esper.kasmina.host.layer import KasminaLayer
from esper.kasmina.host.wrapping import host_parameters


def summary(model: nn.Module) -> str:
    """A table of all places: kind, widths, seeds by state, live grafts, fossils, grown parameters."""
    header = ("place", "kind", "reads", "writes", "seeds", "states", "live", "fossils", "grown parameters")
    rows = [header]
    for place in places(model):
        codes = place.state.lifecycle.unique(return_counts=True)
        states = ", ".join(f"{int(n)} {State(int(code)).name}" for code, n in zip(*codes, strict=True))
        fossils = sum(len(group) for group in place.arena.fossils)
        live, grown = len(place.arena.live), place.arena.num_parameters
        seeds, ports = place.state.num_seeds, place.ports
        name = place.layer_id or "(model)"
        pieces = len(place.site.pieces)
        what = (f"colony of {pieces}", "-", "-") if pieces else (place.kind, ports.inputs, ports.outputs)
        cells = (name, *what, seeds, states, live, fossils, grown)
        rows.append(tuple(map(str, cells)))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    host, total = host_parameters(model), sum(place.arena.num_parameters for place in places(model))
    lines.append(f"host {host:,} parameters, grown {total:,}")
    return "\n".join(lines)


def anatomy(model: nn.Module) -> dict[str, Any]:
    """The modules of a wrapped host and its places, ready for JSON.

    Returns:
        ``type`` and ``parameters`` of the host; ``modules``: name, type and parameters (with all beneath) of every
        module but the host itself, in their order; ``places``: name, kind, widths, seeds, the names of the modules
        that each covers, and of a colony the ``module`` and the ``role`` of every piece.
    """
    modules = [(name, module) for name, module in model.named_modules() if name and not is_espers(name)]
    return {
        "type": _type_name(model),
        "parameters": host_parameters(model),
        "modules": [
            {"name": name, "type": _type_name(module), "parameters": host_parameters(module)}
            for name, module in modules
        ],
        "places": [
            {
                "layer_id": place.layer_id,
                "kind": place.kind,
                "covers": [name for name in place.site.modules if name],
                "pieces": [{"module": piece.module, "role": piece.role} for piece in place.site.pieces],
                "inputs": place.ports.inputs,
                "outputs": place.ports.outputs,
                "layout": place.ports.layout,
                "seeds": place.state.num_seeds,
            }
            for place in places(model)
        ],
    }


def _type_name(module: nn.Module) -> str:
    return (module.esper_base if isinstance(module, KasminaLayer) else type(module)).__name__
