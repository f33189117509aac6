"""The model as a tree of its modules, with the places at which it could grow and what grew there."""

from typing import Any

from esper.observability.labels import place_label
from esper.observability.lifecycles import LifecycleRecord, lifecycles
from esper.observability.record import Record
from esper.observability.worth import gain_over_twin, worth


def anatomy(record: Record) -> dict[str, Any] | None:
    """The host's modules as a nested tree, its places and its grafts, ready for JSON; None if the log does not tell.

    ``covers`` of a place names the outermost modules that it lies around: several siblings for a span, none for the
    whole model; all that it meets for a colony, whose ``pieces`` tell how.
    """
    models = record.of("model")
    if not models:
        return None
    _, model = models[0]
    comparisons = worth(record)
    grown = None if record.result is None else record.result["rows"]["grown"]
    return {
        "type": model["type"],
        "parameters": model["parameters"],
        "grown_parameters": None if grown is None else grown["parameters"],
        "modules": _nested(model["modules"]) or [_alone(model)],
        "places": [
            {
                "layer_id": place["layer_id"],
                "label": place_label(place["layer_id"]),
                "kind": place["kind"],
                "covers": place["covers"],
                "pieces": place.get("pieces", []),
                "seeds": place["seeds"],
                "inputs": place["inputs"],
                "outputs": place["outputs"],
            }
            for place in model["places"]
        ],
        "grafts": [_graft(one, comparisons) for one in lifecycles(record)],
    }


def _nested(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tree; a module whose parent is not listed hangs on the nearest ancestor that is."""
    roots: list[dict[str, Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    for module in modules:
        node = {**{key: module[key] for key in ("name", "type", "parameters")}, "children": []}
        ancestor = module["name"].rpartition(".")[0]
        while ancestor and ancestor not in nodes:
            ancestor = ancestor.rpartition(".")[0]
        siblings = nodes[ancestor]["children"] if ancestor else roots
        siblings.append(node)
        nodes[module["name"]] = node
    return roots


def _alone(model: dict[str, Any]) -> dict[str, Any]:
    """A host without submodules is a box of its own, named by its type."""
    return {"name": model["type"], "type": model["type"], "parameters": model["parameters"], "children": []}


def _graft(one: LifecycleRecord, comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    in_run = one.in_run
    return {
        "lifecycle": one.number,
        "label": one.label,
        "layer_id": one.layer_id,
        "blueprint": one.blueprint,
        "settings": one.settings,
        "outcome": one.outcome,
        "state": in_run[-1]["target"] if in_run and one.outcome is None else None,
        "parameters": None if one.report is None else one.report["parameters"],
        "born_step": one.born_step,
        "ended_step": None if one.report is None else one.report["ended_step"],
        "reason": one.reason,
        "gain": gain_over_twin(comparisons, one.number),
    }
