"""The learned controller in use: it acts where it expects more than it is unsure of, and says why."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Observation
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import STOP, WAIT, Judged, Padded, TamiyoNetwork
from esper.tamiyo.learned.tokens import Tokens, names, tokens
from esper.tamiyo.learned.weights import load

SHIPPED = Path(__file__).with_name("weights.safetensors")
"""The weights that come with the package."""

MOST_SPREAD = 0.3
"""A share of the loss; where the best action is more uncertain than that the heuristic decides."""

STRANGE = 4.0
"""Deviations by which a feature may lie outside of what training saw; beyond, the heuristic decides."""

TOLD = 3
"""Features that an explanation names."""


class Reason(NamedTuple):
    """How much a feature has moved a judgement: what is expected with it, less what would be expected without."""

    name: str
    value: float
    moved: float


class LearnedPolicy:
    """Decides by a network; where that cannot be used, is unsure, or sees what it does not know, the heuristic does.

    Args:
        config: when, where and how much may grow.
        path: of the weights; None takes those that come with Esper.
    """

    def __init__(self, config: GrowthConfig, path: str | Path | None = None) -> None:
        self._config, self._heuristic = config, HeuristicPolicy(config)
        self._remarks: dict[str, str] = {}  # by their kind, that nobody was told yet
        self._told: set[str] = set()
        self._has_stopped = False
        self._network: TamiyoNetwork | None = None
        try:
            self._network = _loaded(SHIPPED if path is None else Path(path))
        except ConfigError as error:
            self._remark("weights", f"{error} The heuristic decides in its place.")

    def decide(self, observation: Observation) -> list[Command]:
        """The graft that is most worth trying, or nothing: it has learned from trials of one graft at a time."""
        seen, network = observation, self._network
        if network is None:
            return self._heuristic.decide(seen)
        actions = [] if self._has_stopped else legal_actions(seen, self._config)
        if not actions:
            return []
        read = tokens(seen, self._config, actions)
        padded = Padded.of([read])
        with torch.no_grad():
            judged, strange = network(padded), float(network.strangeness(padded))
        if strange > STRANGE:
            return self._leave(
                seen, "strange", f"a feature lies {strange:.1f} deviations outside of what it has learned from"
            )
        score = (judged.gain - network.shape.caution * judged.spread)[0]
        best = int(score.argmax())
        if (spread := float(judged.spread[0, best])) > MOST_SPREAD:
            return self._leave(seen, "unsure", f"it is unsure by {spread:.0%} of the loss")
        if network.shape.chooses_by == "policy":
            chosen = self._preferred(judged)
        else:
            chosen = best if score[best] > max(0.0, float(judged.value[0])) else None
        if chosen is not None:
            return [actions[chosen].command(self._config, self._why(network, read, judged, chosen))]
        if not self._has_stopped:
            self._tell_of_waiting(seen, judged, best)
        return []

    def remarks(self) -> list[str]:
        """Sentences about how it decides that nobody was told yet."""
        told, self._remarks = list(self._remarks.values()), {}
        return told

    def state_dict(self) -> dict[str, Any]:
        """Whether it has done with this run, and what it has told."""
        return {"has_stopped": self._has_stopped, "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._has_stopped, told = state["has_stopped"], set(state["told"])
        self._remarks = {kind: text for kind, text in self._remarks.items() if kind not in told}
        self._told = told | self._remarks.keys()

    def _preferred(self, judged: Judged) -> int | None:
        """Index of the action that the policy prefers, if it is one."""
        preferred = int(judged.choice[0].argmax())
        self._has_stopped = preferred == STOP
        return None if preferred in (WAIT, STOP) else preferred - 2

    def _tell_of_waiting(self, seen: Observation, judged: Judged, best: int) -> None:
        count, gain, spread = judged.gain.shape[1], float(judged.gain[0, best]), float(judged.spread[0, best])
        self._remark(
            "waits",
            f"Step {seen.step}: the learned controller waits. Of {count} grafts that could be tried the most promising "
            f"is expected to save {gain:+.1%} of the final loss, give or take {spread:.1%}. It judges again at each "
            "boundary.",
        )

    def _leave(self, seen: Observation, kind: str, why: str) -> list[Command]:
        self._remark(kind, f"Step {seen.step}: the learned controller leaves decisions to the heuristic: {why}.")
        return self._heuristic.decide(seen)

    def _remark(self, kind: str, text: str) -> None:
        """Once a run for each kind."""
        if kind not in self._told:
            self._told.add(kind)
            self._remarks[kind] = text

    def _why(self, network: TamiyoNetwork, read: Tokens, judged: Judged, chosen: int) -> str:
        gain, spread, adopt = (float(part[0, chosen]) for part in (judged.gain, judged.spread, judged.adopt.sigmoid()))
        moved = ", ".join(
            f"{one.name} {one.value:.3g} ({one.moved:+.2%})" for one in reasons(network, read, chosen)[:TOLD]
        )
        return (
            f"learned: {gain:+.1%} of the final loss expected, give or take {spread:.1%}, adopted with {adopt:.0%}; "
            f"most by {moved}"
        )


def reasons(network: TamiyoNetwork, read: Tokens, chosen: int) -> list[Reason]:
    """What an action's expected gain rests on, the most telling first.

    Each feature of the run, of the action and of its place is once put at its mean over the training data, and the
    network asked again (occlusion: Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV
    2014, section 4.2).

    Args:
        network: that judges.
        read: the boundary.
        chosen: index of the action.
    """
    known, place = names(), read.place_of[chosen]
    parts = (
        ("run", known.run, read.run),
        ("place", known.place, read.places[place]),
        ("action", known.action, read.actions[chosen]),
    )
    count = sum(len(features) for _, features, _ in parts)
    every = torch.zeros(count + 1, dtype=torch.int64)
    seen = Padded.of([read]).rows(every).with_one_action(every + chosen)
    where: dict[str, Tensor] = {"run": seen.run, "place": seen.places[:, place], "action": seen.actions[:, 0]}
    means = {"run": network.run.mean, "place": network.place.mean, "action": network.action.mean}
    told, row = [], 1
    for part, features, values in parts:
        for index, name in enumerate(features):
            where[part][row, index] = means[part][index]
            told.append((f"{part}.{name}", values[index]))
            row += 1
    with torch.no_grad():
        gains = network(seen).gain[:, 0].tolist()
    found = [Reason(name, value, gains[0] - without) for (name, value), without in zip(told, gains[1:], strict=True)]
    return sorted(found, key=lambda one: -abs(one.moved))


def _loaded(path: Path) -> TamiyoNetwork:
    """Read once; again where the file is another by now."""
    return _read(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _read(path: Path, written: int) -> TamiyoNetwork:
    return load(path)[0]
