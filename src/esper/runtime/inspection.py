"""What a checkpoint holds, as plain values: read from its files alone, without the model's code.

Nothing of the model is built and nothing is unpickled. Within an arm it is the arm's body that is told.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from esper.checkpoint import store
from esper.checkpoint.shape import check_shape
from esper.contracts.errors import CheckpointError, ConfigError
from esper.contracts.lifecycle import State
from esper.runtime.checkpoints import FOLDER
from esper.runtime.saved import SavedSession, upgraded

_COLUMN = ".state.lifecycle"
"""How the name of a place's column of states ends; what precedes it is the place's."""


def inspect(path: Path) -> dict[str, Any]:
    """Seeds, grafts, fossils, sizes, and what is under way.

    Args:
        path: a run directory, a directory of checkpoints, or one of these.

    Raises:
        ConfigError: if there is no checkpoint, or it is damaged, of another version, or of something else.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise ConfigError(f"{path} {what}. Name the directory of a run, such as runs/digits-0, or of a checkpoint.")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    try:
        saved = store.read_saved(folder)
        state = upgraded(saved.state, saved.format)
        check_shape(state, SavedSession, "")
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return {
        "checkpoint": str(saved.folder),
        "format": saved.format,
        "bytes": store.size_bytes(saved.folder),
        **_told(state),
    }


def _told(state: Any) -> dict[str, Any]:
    books, clock = state["books"], state["clock"]
    places = [_place(*one, state) for one in _columns(state["body"])]
    parameters = {"host": next((line["parameters"] for line in state["events"] if line["event"] == "model"), None)}
    for name in ("grafts", "fossils"):
        parameters[name] = sum(graft["parameters"] or 0 for place in places for graft in place[name])
    return {
        "step": clock["step"],
        "planned_steps": state["identity"]["facts"].get("planned_steps"),
        "epoch": clock["epoch"],
        "is_finished": state["losses"][2],
        "parameters": parameters,
        "flops": {name: books[f"{name}_flops"] for name in ("run", "arm", "judging")},
        "lifecycles": {
            "begun": books["lifecycles_begun"],
            "ended": dict(Counter(report["outcome"] for report in books["reports"])),
        },
        "under_way": _under_way(state["growth"]),
        "places": places,
    }


def _columns(body: Any) -> list[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """Of every place its name, topology and columns. Both are stored in the order of the model's modules."""
    prefixes = [name.removesuffix(_COLUMN) for name in body["model"] if name.endswith(_COLUMN)]
    if len(prefixes) != len(body["topology"]):
        raise ConfigError("The checkpoint does not fit together: it has states of other places than it names.")
    found = []
    for (layer_id, text), prefix in zip(body["topology"].items(), prefixes, strict=True):
        start = f"{prefix}.state."
        columns = {name.removeprefix(start): one for name, one in body["model"].items() if name.startswith(start)}
        found.append((layer_id, json.loads(text), columns))
    return found


def _place(layer_id: str, topology: dict[str, Any], columns: dict[str, Tensor], state: Any) -> dict[str, Any]:
    lists = {name: column.tolist() for name, column in columns.items()}
    codes, arena = lists["lifecycle"], topology["arena"]
    sizes = {one["number"]: one["parameters"] for one in state["books"]["alive"]}
    sizes |= {report["lifecycle"]: report["parameters"] for report in state["books"]["reports"]}

    def graft(saved: dict[str, Any]) -> dict[str, Any]:
        names = ("lifecycle", "blueprint", "settings", "strategy", "seeds", "channels", "slot")
        return {name: saved[name] for name in names} | {"parameters": sizes.get(saved["lifecycle"])}

    def live(saved: dict[str, Any]) -> dict[str, Any]:
        first = saved["seeds"][0]
        return graft(saved) | {"state": State(codes[first]).name, "alpha": round(lists["alpha"][first], 6)}

    columns_told = ("lifecycle_id", "alpha", "version", "steps_in_state", "embargo_epochs")
    awake = [
        {"seed": seed, "state": State(code).name} | {name: lists[name][seed] for name in columns_told}
        for seed, code in enumerate(codes)
        if code != State.DORMANT
    ]
    return {
        "layer_id": layer_id,
        "seeds": len(codes),
        "states": {State(code).name: count for code, count in sorted(Counter(codes).items())},
        "awake": awake,
        "grafts": [live(one) for one in arena["grafts"]],
        "fossils": [graft(one) for group in arena["fossils"] for one in group],
        "slots": {"count": arena["num_slots"], "size": arena["slot_size"]},
    }


def _under_way(growth: Any) -> dict[str, Any] | None:
    """The round or live trial that has begun, and where its arm stands; None if there is none."""
    now, trial = growth["round"], growth["trial"]
    if now is not None:
        told = {name: now[name] for name in ("number", "start_step", "end_step", "candidates")}
        return {"round": told, "arm": _arm(now, now["arm"], now["arm_steps"])}
    if trial is not None:
        window = trial["window"]
        arm = None if window is None else _arm(window, 0, len(window["flops"]))
        return {"trial": {name: trial[name] for name in ("number", "members")}, "arm": arm}
    return None


def _arm(window: Any, index: int, steps: int | None) -> dict[str, Any] | None:
    """Which arm stands where; None while the run itself still trains. ``steps`` is None before it is known."""
    if window["run"] is None:
        return None
    return {"index": index, "step": window["arm_step"], "steps": steps, "run_step": window["run"]["clock"]["step"]}
