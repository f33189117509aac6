"""What a wrapped model carries, in words."""

from torch import nn

from esper.contracts.lifecycle import State
from esper.kasmina.hosts import host_parameters, places


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
        cells = (name, place.kind, ports.inputs, ports.outputs, seeds, states, live, fossils, grown)
        rows.append(tuple(map(str, cells)))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    host, total = host_parameters(model), sum(place.arena.num_parameters for place in places(model))
    lines.append(f"host {host:,} parameters, grown {total:,}")
    return "\n".join(lines)
