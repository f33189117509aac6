"""``esper inspect``: prints what a checkpoint holds."""

import json
from pathlib import Path
from typing import Any

from esper.observability.labels import graft_label, place_label
from esper.runtime.inspection import inspect


def show(path: Path, *, as_json: bool) -> None:
    """Print it, for people or as JSON.

    Raises:
        ConfigError: as for :func:`~esper.runtime.inspection.inspect`.
    """
    found = inspect(path)
    print(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    parameters, lifecycles = found["parameters"], found["lifecycles"]
    ended = ", ".join(f"{count} {name}" for name, count in lifecycles["ended"].items())
    status = ", finished" if found["is_finished"] else ""
    return [
        f"checkpoint  {found['checkpoint']}, format {found['format']}, {found['bytes']:,} bytes",
        f"step        {found['step']:,} of {found['planned_steps']:,}, {found['epoch']} epochs{status}",
        f"parameters  {_count(parameters['host'])} host, {parameters['grafts']:,} grafts, "
        f"{parameters['fossils']:,} fossils",
        "FLOPs       " + ", ".join(f"{value:.3g} {name}" for name, value in found["flops"].items()),
        f"lifecycles  {lifecycles['begun']} begun{'; ended: ' + ended if ended else ''}",
        f"under way   {_under_way(found['under_way'])}",
        "",
        *_table(found["places"]),
        *[line for place in found["places"] for line in _grown(place)],
    ]


def _under_way(now: dict[str, Any] | None) -> str:
    if now is None:
        return "nothing"
    if "round" in now:
        one = now["round"]
        text = f"round {one['number']} of {len(one['candidates'])} candidates, steps {one['start_step']:,} to "
        text += f"{one['end_step']:,}"
    else:
        text = f"live trial {now['trial']['number']}"
    arm = now["arm"]
    if arm is None:
        return text
    steps = "?" if arm["steps"] is None else f"{arm['steps']:,}"
    return f"{text}; arm {arm['index'] + 1} at step {arm['step']:,} of {steps}, the run waits at {arm['run_step']:,}"


def _table(places: list[dict[str, Any]]) -> list[str]:
    width = max(len("place"), *(len(place_label(one["layer_id"])) for one in places)) if places else 0
    rows = [f"{'place':{width}}  {'seeds':>6}  {'grafts':>6}  {'fossils':>7}  states"] if places else []
    for one in places:
        states = ", ".join(f"{count:,} {name}" for name, count in one["states"].items())
        counts = f"{one['seeds']:>6,}  {len(one['grafts']):>6}  {len(one['fossils']):>7}"
        rows.append(f"{place_label(one['layer_id']):{width}}  {counts}  {states}")
    return rows


def _grown(place: dict[str, Any]) -> list[str]:
    told = []
    for kind in ("graft", "fossil"):
        for one in place[f"{kind}s"]:
            first, end = one["seeds"]
            seed: int | str = first if end - first == 1 and place["seeds"] > 1 else "all"
            where = graft_label(place["layer_id"], seed, one["blueprint"])
            now = f", {one['state']}, alpha {one['alpha']:g}" if kind == "graft" else ""
            channels = f", channels {one['channels'][0]} to {one['channels'][1] - 1}"
            if "*" in place["layer_id"]:  # a colony's lie at many modules
                channels = ""
            size = f"{_count(one['parameters'])} parameters"
            told.append(f"{kind} {one['lifecycle']}: {where}, {size}{channels}, {one['strategy']}{now}")
    return ["", *told] if told else []


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
