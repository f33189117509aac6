"""Looks up what a page's pictures draw in the files of its run, without any of the code that made the page."""

import base64
import math
import zlib
from typing import Any

import numpy as np

from tests.observability.walking import Files

FLOPS = ("run_flops", "arm_flops", "judging_flops")
ABSENT = 255
OUTCOMES = ("FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK")


def check_data(data: dict[str, Any], files: Files) -> None:
    """Everything that the scripts draw is what the files say."""
    check_curves(data["curves"], files)
    check_lanes(data["lanes"], files)
    check_worth(data["worth"], files)
    if data["anatomy"] is not None:
        check_anatomy(data["anatomy"], files)
    if data["lattice"] is not None:
        check_lattice(data["lattice"], files)


def check_curves(curves: dict[str, Any], files: Files) -> None:
    epochs, run = files.events("epoch"), curves["run"]
    assert run["steps"] == [event["step"] for event in epochs]
    assert run["flops"] == [sum(event[name] for name in FLOPS) for event in epochs]
    for name, field in (("train_losses", "train_loss"), ("val_losses", "val_loss"), ("val_metrics", "val_metric")):
        assert run[name] == [event[field] for event in epochs]
    ended = files.events("arm_ended", "trial_ended")
    twins = [event for event in ended if event["event"] == "arm_ended" or "twin_select_loss" in event]
    for arm, event in zip(curves["arms"], twins, strict=True):
        curve = event["curve"]
        assert (arm["steps"], arm["flops"], arm["train_losses"]) == (
            *(curve["steps"], curve["flops"], curve["train_losses"]),
        )
        assert (arm["end_step"], arm["lifecycle"]) == (event["step"], event.get("lifecycle"))
        assert arm["select_loss"] == event["select_loss" if event["event"] == "arm_ended" else "twin_select_loss"]
    result = files.result()
    rows = (
        files.content("progress.json")["rows"] if result is None and curves["controls"] else (result or {}).get("rows")
    )
    for control in curves["controls"]:
        curve = rows[control["name"]]["curve"]
        assert {name: control[name] for name in curve} == curve
    moves = [event for event in files.events("transition") if event["arm"] is None and event["target"] != "DORMANT"]
    names = ("step", "lifecycle", "source", "target", "reason")
    for mark, event in zip(curves["marks"], moves, strict=True):
        assert [mark[name] for name in names] == [event[name] for name in names]
        assert mark["flops"] == sum(event[name] for name in FLOPS)


def check_lanes(lanes: list[dict[str, Any]], files: Files) -> None:
    moves = files.events("transition")
    reports = {event["lifecycle"]: event for event in files.events("field_report")}
    reports |= {event["lifecycle"]: event for event in (files.result() or {}).get("lifecycles", [])}
    assert {event["lifecycle"] for event in moves} - {None} <= {lane["lifecycle"] for lane in lanes}
    for lane in lanes:
        report = reports.get(lane["lifecycle"])
        if report is not None:
            assert all(lane[name] == report[name] for name in ("outcome", "reason", "layer_id", "blueprint"))
        for span in lane["spans"]:
            key = (lane["lifecycle"], span["state"], span["arm"], span["from"])
            (move,) = [one for one in moves if (one["lifecycle"], one["target"], one["arm"], one["step"]) == key] or [
                None
            ]
            if move is None:  # its line was lost
                assert span["from"] in (report["born_step"], report["ended_step"])
            else:
                assert (span["gates"], span["reason"]) == (move["gates"], move["reason"])
            assert span["to"] in ends_of(lane, span, files, report)


def ends_of(lane: dict[str, Any], span: dict[str, Any], files: Files, report: dict[str, Any] | None) -> set[int]:
    """Where a span may end: at what follows it, at the end of its arm, of the lifecycle or of the run."""
    same = [one for one in lane["spans"] if one["arm"] == span["arm"]]
    following = same[same.index(span) + 1 :]
    if following:
        return {following[0]["from"]}
    if span["arm"] is not None:
        arms = [event["step"] for event in files.events("arm_ended") if event["arm"] == span["arm"]]
        return set(arms) or {span["from"]}
    if span["state"] in OUTCOMES[1:] and report is not None:
        return {report["ended_step"]}
    return {max(event.get("step", 0) for event in files.events())}


def check_worth(rows: list[dict[str, Any]], files: Files) -> None:
    for row in rows:
        event = files.look_up(f"audit.jsonl#{row['line']}")
        measured = event.get("gates", event)
        prefix, z = ("", "twin_z") if row["against"] == "its twin" else ("ablation_", "ablation_z")
        mean, error = measured[f"{prefix}gain"], measured[f"{prefix}gain_se"]
        assert (row["mean"], row["z"], row["step"]) == (mean, measured[z], event["step"])
        assert row["passed"] == event.get("passed", True)
        if mean is None or error is None:
            assert (row["low"], row["high"]) == (None, None)
            continue
        assert math.isclose((row["high"] - row["low"]) / 2, 1.959964 * error, rel_tol=1e-6)
        assert math.isclose(row["high"] + row["low"], 2 * mean, rel_tol=1e-9, abs_tol=1e-12)
    assert [row["line"] for row in rows] == compared_lines(files)


def compared_lines(files: Files) -> list[int]:
    """Lines of the log that compare a graft with what it had to beat."""
    return [number for number, event in files.numbered("audit.jsonl") if compares(event)]


def compares(event: dict[str, Any]) -> bool:
    if event.get("event") == "trial_ended":
        return "twin_z" in event
    if event.get("event") == "transition":
        is_adopted = event["target"] == "FINE_TUNING" and event["lifecycle"] is not None
        return is_adopted and event["gates"].get("ablation_gain") is not None
    return event.get("event") in ("arm_ended", "keep_look")


def check_anatomy(anatomy: dict[str, Any], files: Files) -> None:
    (model,) = files.events("model")
    assert (anatomy["type"], anatomy["parameters"]) == (model["type"], model["parameters"])

    def flat(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one for node in nodes for one in ({**node, "children": None}, *flat(node["children"]))]

    alone = {"name": model["type"], "type": model["type"], "parameters": model["parameters"]}
    assert [{**one, "children": None} for one in model["modules"] or [alone]] == flat(anatomy["modules"])
    for shown, place in zip(anatomy["places"], model["places"], strict=True):
        assert all(shown[name] == place[name] for name in ("layer_id", "kind", "covers", "seeds", "inputs", "outputs"))
    result = files.result()
    assert anatomy["grown_parameters"] == (None if result is None else result["rows"]["grown"]["parameters"])
    reports = {event["lifecycle"]: event for event in files.events("field_report")}
    for graft in anatomy["grafts"]:
        if graft["lifecycle"] in reports:
            report = reports[graft["lifecycle"]]
            names = ("layer_id", "blueprint", "settings", "outcome", "parameters", "born_step", "ended_step")
            assert all(graft[name] == report[name] for name in names)
        if graft["gain"] is not None:
            gains = [one["gain"] for one in files.events("arm_ended", "trial_ended") if one.get("gain") is not None]
            assert graft["gain"]["mean"] in gains


def check_lattice(lattice: dict[str, Any], files: Files) -> None:
    """Value by value, as the page's script reads it."""
    told_at = {line["step"]: line for line in files.events("telemetry")}
    epoch_at = {line["step"]: line["epoch"] for line in files.events("epoch", "telemetry")}
    steps = sorted(epoch_at)[:: lattice["every"]]
    assert lattice["steps"] == steps
    assert lattice["epochs"] == [epoch_at[step] for step in steps]
    lines = [told_at.get(step, {"places": {}}) for step in steps]
    of_model = {(one["layer_id"], one["seeds"]) for event in files.events("model") for one in event["places"]}
    assert of_model <= {(one["layer_id"], one["seeds"]) for one in lattice["places"]} or files.events("rechunked")
    seeds = sum(place["seeds"] for place in lattice["places"])
    packed = zlib.decompress(base64.b64decode(lattice["packs"][0]["codes"]))
    states = np.frombuffer(zlib.decompress(base64.b64decode(lattice["packs"][0]["states"])), np.uint8).reshape(
        -1, seeds
    )
    states, half = np.cumsum(states, axis=0) % 256, len(packed) // 2
    for index, measure in enumerate(lattice["measures"]):
        code = [0] * seeds
        for boundary, line in enumerate(lines):
            for place in lattice["places"]:
                told = line["places"].get(place["layer_id"], {})
                column = told.get(measure["key"], [None] * place["seeds"])
                if len(column) != place["seeds"]:  # it had another number of seeds then
                    column, told = [None] * place["seeds"], {}
                for seed, value in enumerate(column):
                    at = place["first"] + seed
                    offset = (index * len(lines) + boundary) * seeds + at
                    folded = packed[offset] + 256 * packed[half + offset]
                    code[at] = (code[at] + ((folded >> 1) ^ -(folded & 1))) % 65536
                    check_code(code[at], value)
                    if told:
                        assert states[boundary, at] == told.get("awake", {}).get(str(seed), 0)
                    else:
                        assert states[boundary, at] in (0, ABSENT)


def check_code(code: int, value: float | None) -> None:
    """A code keeps two significant digits of a value."""
    if value is None:
        assert code == 0
    elif value == 0:
        assert code == 65534
    else:
        exponent, digits = divmod(code - 1, 90)
        assert math.isclose((digits + 10) / 10 * 10.0 ** (exponent - 40), value, rel_tol=0.0501)
