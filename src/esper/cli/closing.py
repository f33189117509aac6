"""The end of a run: the table of grown network and controls, and in plain words what growth was worth."""

import math
from typing import Any

Result = dict[str, Any]
_HEADINGS = ("", "parameters", "training FLOPs", "held-out loss", "accuracy", "test loss", "accuracy", "learning rate")


def table(result: Result) -> str:
    """The rows of ``result.json`` as aligned text."""
    lines = [_HEADINGS]
    for name, row in result["rows"].items():
        if row is None:
            lines.append((name, f"- ({result['reasons'][name]})", *[""] * (len(_HEADINGS) - 2)))
            continue
        lines.append(
            (
                name,
                f"{row['parameters']:,}",
                f"{row['train_flops'] / 1e6:,.1f} M",
                _number(row["val_loss"], ".4f"),
                _number(row["val_metric"], ".1%"),
                _number(row["test_loss"], ".4f"),
                _number(row["test_metric"], ".1%"),
                f"{row['lr']:g} {row['schedule']}",
            )
        )
    complete = [line for line in lines if line[-1]]
    widths = [max(len(line[column]) for line in complete) for column in range(len(_HEADINGS))]
    return "\n".join(_aligned(line, [max(widths[0], 8), *widths[1:]]) for line in lines)


def worth(result: Result) -> str:
    """What growth was worth on the test samples, in plain words."""
    grown, host_on, static = (result["rows"][name] for name in ("grown", "host_on", "static"))
    kept = sum(one["outcome"] == "FOSSILIZED" for one in result["lifecycles"])
    share = result["probe_flops"] / grown["train_flops"]
    if not result["lifecycles"]:
        opening = "No growth was tried"
    elif not kept:
        opening = f"Nothing grew: no candidate proved its worth, and trying took {share:.0%} of the training FLOPs"
    else:
        parts = "1 part" if kept == 1 else f"{kept} parts"
        opening = f"The network grew {parts}; trying took {share:.0%} of the training FLOPs"
    if host_on is None:
        return f"{opening}. What that was worth was not measured: {result['reasons']['host_on']}."
    if grown["test_loss"] is None:
        return f"{opening}. The loss is not finite, so nothing can be compared: try a smaller --lr."
    points, loss = _gains(grown, host_on)
    if not kept:
        return (
            f"{opening}. Against the host trained on for as many FLOPs, at a learning rate searched for it: "
            f"{_signed(points)} points of accuracy."
        )
    if points >= 0 and loss > 0:
        verdict = "and that paid"
    elif points <= 0 and loss <= 0:
        verdict = "but that did not pay"
    else:
        verdict = "but test loss and accuracy disagree about whether it paid"
    sentence = (
        f"{opening}, {verdict}: {_signed(points)} points of accuracy and {_signed(-loss, '.3f')} in loss against the "
        "host trained on for as many FLOPs"
    )
    if static is not None:
        points, loss = _gains(grown, static)
        gains = f"{_signed(points)} points and {_signed(-loss, '.3f')}"
        sentence += f"; {gains} against a network that had this size from the start"
    return sentence + "."


def _gains(grown: Result, control: Result) -> tuple[float, float]:
    """Points of test accuracy and nats of test loss by which the grown network is better."""
    control_loss = math.inf if control["test_loss"] is None else control["test_loss"]
    return round(100 * (grown["test_metric"] - control["test_metric"]), 1), control_loss - grown["test_loss"]


def _signed(value: float, spec: str = ".1f") -> str:
    return format(value + 0.0, "+" + spec)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = line
    return "  ".join(
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
    ).rstrip()
