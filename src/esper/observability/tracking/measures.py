"""What a line of a run's log means to a tracker: numbers, and samples. One fold over the lines, from the first on."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from esper.contracts.lifecycle import State

Line = Mapping[str, Any]

SENSED = ("chunk_variance", "inactive_ratio", "mean_abs_correlation", "gradient_norm")
"""What seeds sense: a histogram of each at each place."""

_EPOCH = {
    "epoch": "epoch",
    "lr": "lr",
    "train_loss": "loss/train",
    "val_loss": "loss/select",
    "run_flops": "flops/run",
    "arm_flops": "flops/arms",
    "judging_flops": "flops/judging",
}
_FINISHED = {"select_loss": "final/loss", "select_metric": "final/metric", "train_flops": "final/train_flops"}
_GATES = ("alpha", "gain", "twin_z", "variation", "ablation_z", "ablation_gain", "confirm_p")


class Measures:
    """Remembers of the lines what later ones leave out.

    Names of numbers hold at most a place, an outcome or a state: there are no more of them the longer a run is.
    """

    def __init__(self) -> None:
        self._metric = "metric"
        self._seeds: dict[str, int] = {}
        self._parameters = 0
        self._outcomes: Counter[str] = Counter()

    def scalars(self, line: Line) -> dict[str, float]:
        """The numbers that a line tells. What is not finite in it is null, and left out."""
        told = self._told(line)
        return {name: float(value) for name, value in told.items() if value is not None}

    def histograms(self, line: Line) -> dict[str, list[float]]:
        """What seeds have sensed, by place and quantity."""
        if line["event"] != "telemetry":
            return {}
        found = {}
        for layer_id, columns in line["places"].items():
            for name in SENSED:
                if known := [value for value in columns.get(name, ()) if value is not None]:
                    found[f"sensed/{name}/{named(layer_id)}"] = known
        return found

    def _told(self, line: Line) -> dict[str, Any]:
        match line["event"]:
            case "model":
                self._metric = line.get("metric") or "metric"
                self._seeds = {place["layer_id"]: place["seeds"] for place in line["places"]}
                return {"parameters/host": line["parameters"], "seeds/all": sum(self._seeds.values())}
            case "rechunked":
                self._seeds[line["layer_id"]] = line["num_seeds"]
                return {"seeds/all": sum(self._seeds.values())}
            case "epoch":
                told = {name: line[field] for field, name in _EPOCH.items()}
                return told | {f"metric/{self._metric}": line["val_metric"]}
            case "telemetry":
                return self._in_states(line["places"])
            case "transition":
                return {f"gates/{name}/{named(line['layer_id'])}": line["gates"].get(name) for name in _GATES}
            case "arm_ended":
                place = named(line["arm"].partition("/")[2].rpartition("/")[0])
                return {f"arms/{name}/{place}": line[name] for name in ("gain", "twin_z", "variation")}
            case "keep_look":
                return {f"gates/{name}/{named(line['layer_id'])}": line.get(name) for name in _GATES}
            case "field_report":
                return self._ended(line)
            case "finished":
                return {name: line[field] for field, name in _FINISHED.items()}
        return {}

    def _in_states(self, places: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Seeds by state: the log tells those that are awake."""
        counts = Counter(State(code) for place in places.values() for code in place.get("awake", {}).values())
        counts[State.DORMANT] = sum(self._seeds.values()) - counts.total()
        return {f"seeds/{state.name}": counts[state] for state in State}

    def _ended(self, line: Line) -> dict[str, int]:
        outcome = line["outcome"]
        self._outcomes[outcome] += 1
        told = {f"lifecycles/{outcome}": self._outcomes[outcome]}
        if outcome == State.FOSSILIZED.name:
            self._parameters += line["parameters"]
            told["parameters/fossils"] = self._parameters
        return told


def named(layer_id: str) -> str:
    """A place within a name: the whole model has none of its own, and trackers refuse ``*``."""
    return layer_id.replace("*", "all") or "model"
