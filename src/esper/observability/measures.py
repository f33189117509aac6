"""What a run is measured by, in the names and units of its task."""

from typing import Any

from esper.observability.record import Record

R2 = "R2"
RMSE = "RMSE"
NOTE = f"{RMSE}: root of the mean squared error, in the units of what is predicted."


def metric_name(record: Record) -> str | None:
    """Name of the run's metric; None if it has none."""
    if record.result is not None and record.result.get("metric") is not None:
        return str(record.result["metric"])
    models = [event for _, event in record.of("model") if "metric" in event]
    if models:
        name: str | None = models[0]["metric"]
        return name
    return "accuracy" if any(event["val_metric"] is not None for _, event in record.epochs) else None


def loss_unit(metric: str | None) -> str:
    """Unit of the loss: none where a quantity is predicted, whose loss is relative to its variance."""
    return "" if metric == R2 else "nats"


def loss_gain(metric: str | None) -> str:
    """What a column of gains in test loss is called."""
    return ", ".join(filter(None, ("gain in test loss", loss_unit(metric))))


def further(result: dict[str, Any]) -> dict[str, str]:
    """Other measures of the test samples: how each is written, by its name."""
    names = result["rows"]["grown"].get("test_further", {})
    return {name: "number" if name == RMSE else "percent" for name in names}
