"""Learning curves over steps and over training FLOPs: of the run, of the arms, of the controls; and what happened."""

from typing import Any

from esper.observability.files import Event
from esper.observability.lifecycles import lifecycles
from esper.observability.record import Record

CONTROLS = ("host_on", "static")


def curves(record: Record) -> dict[str, Any]:
    """All curves, ready for JSON.

    ``flops`` counts everything that training had taken by then: the run, all arms and the judging.
    """
    return {"run": _run(record), "arms": _arms(record), "controls": _controls(record), "marks": _marks(record)}


def total_flops(event: Event) -> int:
    """Training FLOPs of the run, of the arms and of the judging."""
    return int(event["run_flops"] + event["arm_flops"] + event["judging_flops"])


def _run(record: Record) -> dict[str, Any]:
    epochs = [event for _, event in record.epochs]
    return {
        "steps": [event["step"] for event in epochs],
        "flops": [total_flops(event) for event in epochs],
        "train_losses": [event["train_loss"] for event in epochs],
        "val_losses": [event["val_loss"] for event in epochs],
        "val_metrics": [event["val_metric"] for event in epochs],
    }


def _arms(record: Record) -> list[dict[str, Any]]:
    """Arms of rounds, and the twins of live trials: both replay a window of the run."""
    labels = {one.number: one.label for one in lifecycles(record)}
    adopted = {
        (event["round"], event["adopted"]["lifecycle"])
        for _, event in record.of("round_ended")
        if event["adopted"] is not None
    }
    arms = []
    for _, event in record.of("arm_ended", "trial_ended"):
        number, curve = event.get("lifecycle"), event.get("curve") or {}
        is_arm = event["event"] == "arm_ended"
        if not is_arm and "twin_select_loss" not in event:  # judged by ablation, or not at all: there was no twin
            continue
        arms.append(
            {
                "kind": "arm" if is_arm else "twin",
                "lifecycle": number,
                "label": labels.get(number or 0, event["arm"]) if is_arm else f"twin of live trial {event['trial']}",
                "arm": event["arm"] if is_arm else f"trial{event['trial']}/twin",
                "passed": event["passed"] if is_arm else None,
                "adopted": (event["round"], number) in adopted if is_arm else not event.get("passed", True),
                "steps": curve.get("steps", []),
                "flops": curve.get("flops", []),
                "train_losses": curve.get("train_losses", []),
                "end_step": event["step"],
                "end_flops": next(iter(curve.get("flops", [])[-1:]), None),
                "select_loss": event["select_loss" if is_arm else "twin_select_loss"],
            }
        )
    return arms


def _controls(record: Record) -> list[dict[str, Any]]:
    """Controls whose training was recorded; of an unfinished run those that are done."""
    rows = record.progress.get("rows", {}) if record.result is None else record.result["rows"]
    names = ("steps", "flops", "train_losses", "val_losses", "val_metrics")
    return [
        {"name": control, **{name: rows[control]["curve"].get(name, []) for name in names}}
        for control in CONTROLS
        if rows.get(control) and rows[control].get("curve")
    ]


def _marks(record: Record) -> list[dict[str, Any]]:
    """Transitions of the run itself, but for seeds that fall asleep again."""
    labels = {one.number: one.label for one in lifecycles(record)}
    return [
        {
            "step": event["step"],
            "flops": total_flops(event),
            "lifecycle": event["lifecycle"],
            "label": labels.get(event["lifecycle"]),
            "source": event["source"],
            "target": event["target"],
            "reason": event["reason"],
        }
        for _, event in record.of("transition")
        if event["arm"] is None and event["target"] != "DORMANT"
    ]
