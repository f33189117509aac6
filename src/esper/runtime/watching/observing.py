"""What the controller sees, and how far the host has moved since all was last well."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from esper.contracts.commands import Command
from esper.contracts.events import Note
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.host.wrapping import covered_parameters, host_parameters
from esper.kasmina.places.place import Place
from esper.kasmina.seeds.reading import read_together
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.shards import whole
from esper.tamiyo.sizing import no_colony, nowhere, too_small
from esper.tamiyo.train_flops import looks_of_a_trial

UNDER_WAY = (State.GERMINATED, State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING)

SAMPLED_WEIGHTS = 4096
"""Of the weights that a place covers, for its drift."""


class Observer:
    """Builds observations.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._covered = covered_parameters(run.model)
        self._weights: dict[str, Tensor] = {}
        self._before: dict[str, int] = {"steps": 0, "flops": 0, "multiply_adds": 0}  # anything germinated
        self._has_told = False

    def observe(self) -> Observation:
        """What the controller sees now; reads from the device. Budgets that leave no room for anything are told."""
        why_not = self._run.tracing.why_not
        seen = self._observation(self._reports([p for p in self._run.places.values() if why_not(p) is None]))
        self._tell_if_too_small(seen)
        return seen

    def observe_for(self, command: Command) -> Observation:
        """What the shield needs to see for a command: its places, and what would be grown if all that waits succeeds.

        Grafts that wait for live trials add up; of those that wait for a round one can be adopted, the largest counts.
        """
        run = self._run
        waiting = run.in_state(State.GERMINATED, State.TRAINING)
        added = {"live": [0, 0], "round": [0, 0]}
        for one in waiting:
            total = added[one.trial]
            for index, size in enumerate((one.parameters, self._multiply_adds(one))):
                total[index] = total[index] + size if one.trial == "live" else max(total[index], size)
        named = dict.fromkeys(layer_id for layer_id, _ in command.addresses)
        seen = self._observation(self._reports([run.places[name] for name in named if name in run.places]))
        return replace(
            seen,
            grown_parameters=seen.grown_parameters + added["live"][0] + (command.trial == "live") * added["round"][0],
            grown_multiply_adds=(
                seen.grown_multiply_adds + added["live"][1] + (command.trial == "live") * added["round"][1]
            ),
        )

    def sensed(self) -> dict[str, dict[str, Any]]:
        """What the seeds of every place have sensed since the last boundary, for the log; reads from the device.

        Returns:
            By place the columns of :class:`SeedReport` that were measured, with four significant digits, and ``awake``:
            the state codes of the seeds that are not DORMANT, by their index.
        """
        scale = self._run.trainer.gradient_scale
        found, places = {}, self._run.places
        readings = read_together([[place.state.lifecycle, place.telemetry.readings()] for place in places.values()])
        for (layer_id, place), (states, sensed) in zip(places.items(), readings, strict=True):
            columns = asdict(place.telemetry.report(scale, sensed)).items()
            told: dict[str, Any] = {name: _rounded(column) for name, column in columns if column is not None}
            awake = {str(seed): code for seed, code in enumerate(states.int().tolist()) if code}
            if told | awake:
                found[layer_id] = told | ({"awake": awake} if awake else {})
        return found

    def note_weights(self) -> None:
        """All is well now: drift is measured from here."""
        self._weights = self._samples(list(self._run.places))

    def is_sample(self, layer_id: str, weights: Tensor) -> bool:
        """Whether these may be weights of a place from which drift is measured."""
        return layer_id in self._covered and self._samples([layer_id])[layer_id].shape == weights.shape

    def state_dict(self) -> dict[str, Any]:
        """The weights from which drift is measured, what a step cost before anything germinated, what was told."""
        return {"weights": self._weights, "before": self._before, "has_told": self._has_told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._weights, self._before, self._has_told = state["weights"], state["before"], state["has_told"]

    def _observation(self, places: list[PlaceReport]) -> Observation:
        run = self._run
        books, arenas = run.books, {name: place.arena for name, place in run.places.items()}
        rows = run.tracing.rows or {}
        grown = [
            _work(run.places[name], graft) * rows.get(name, 0)
            for name, arena in arenas.items()
            for graft in [*arena.live, *(fossil for group in arena.fossils for fossil in group)]
        ]
        if not books.lifecycles_begun:
            self._before = {"steps": run.step, "flops": books.run_flops, "multiply_adds": sum(grown)}
        return Observation(
            step=run.step,
            planned_steps=run.planned_steps,
            epoch=run.epoch,
            train_losses=books.train_losses,
            select_losses=books.select_losses,
            select_metrics=books.select_metrics,
            places=places,
            rounds_done=books.rounds_begun + books.trials_begun,
            active=len(run.in_state(*UNDER_WAY)),
            host_parameters=host_parameters(run.model),
            host_multiply_adds=run.tracing.multiply_adds,
            grown_parameters=sum(arena.num_parameters for arena in arenas.values()),
            grown_multiply_adds=sum(grown),
            reports=books.reports,
            train_flops=run.costs.train_flops,
            step_flops=self._before["flops"] / max(1, self._before["steps"]),
            first_multiply_adds=self._before["multiply_adds"],
            **self._planned(),
        )

    def _planned(self) -> dict[str, Any]:
        """What growth that is under way may still cost."""
        run, config = self._run, self._run.config
        trials = [one for one in run.in_state(*UNDER_WAY) if one.trial == "live"]
        tuned = [one for one in run.in_state(State.FINE_TUNING) if not one.is_kept]
        waiting = [one for one in run.in_state(State.GERMINATED, State.TRAINING) if one.trial == "round"]
        evaluations = len(trials) * looks_of_a_trial(config)
        evaluations += sum(len(config.keep_looks) - one.looks + 1 for one in tuned)
        twins = [run.planned_steps - one.born_step for one in trials if config.judge == "twin"]
        evaluation = 0
        if config.max_train_flops is not None:
            evaluation = run.evaluations.flops()
        return {
            "evaluation_flops": evaluation,
            "open_evaluations": evaluations,
            "open_arm_steps": max(twins, default=0),
            "waiting_multiply_adds": tuple(self._multiply_adds(one) for one in waiting),
        }

    def _tell_if_too_small(self, seen: Observation) -> None:
        """Once, where growth may begin and nothing was tried yet."""
        config = self._run.config
        is_time = config.grow_after <= seen.step / seen.planned_steps <= config.grow_until and config.max_rounds > 0
        if self._has_told or not is_time or self._run.books.lifecycles_begun:
            return
        text = nowhere(seen, config) or too_small(seen, config) or no_colony(seen, config)
        if text is not None:
            self._has_told = True
            self._run.journal.write(Note(text=text))

    def _reports(self, places: Sequence[Place]) -> list[PlaceReport]:
        """In two reads, however many places: one of their seeds, one of the host's weights."""
        rows, scale = self._run.tracing.rows or {}, self._run.trainer.gradient_scale
        readings = read_together([place.readings() for place in places])
        drifts = self._drifts([place.layer_id for place in places])
        return [
            replace(place.report(scale, read), rows=rows.get(place.layer_id, 0), drift=drifts.get(place.layer_id))
            for place, read in zip(places, readings, strict=True)
        ]

    def _drifts(self, layer_ids: Sequence[str]) -> dict[str, float]:
        """Of the places of which there is one."""
        before = {name: self._weights[name] for name in layer_ids if name in self._weights}
        lengths = {name: weights.norm() for name, weights in before.items() if weights.numel()}
        now = self._samples(list(lengths))
        return {
            name: float((now[name] - before[name]).norm() / length) for name, length in lengths.items() if length > 0
        }

    def _multiply_adds(self, one: Lifecycle) -> int:
        place = self._run.places[one.layer_id]
        return _work(place, place.arena.grafts[one.number]) * (self._run.tracing.rows or {}).get(one.layer_id, 0)

    def _samples(self, layer_ids: Sequence[str]) -> dict[str, Tensor]:
        """Evenly spaced weights ``[W]`` of the host modules of places, on the host, ``W`` at most about 4096 each."""
        parts = []
        for layer_id in layer_ids:
            parameters = self._covered[layer_id]
            stride = max(1, sum(parameter.numel() for parameter in parameters) // SAMPLED_WEIGHTS)
            parts.append([whole(parameter.detach()).flatten()[::stride].clone() for parameter in parameters])
        read = read_together(parts)
        return {name: torch.cat(own) if own else torch.zeros(0) for name, own in zip(layer_ids, read, strict=True)}


def _work(place: Place, graft: Graft) -> int:
    """Multiply-adds of a graft for each row; of a colony for all of what its pieces see now."""
    if graft.ports.pieces is None:
        return graft.blueprint.work_of(graft.ports)
    seen = {(piece.module, piece.role): piece for piece in place.site.pieces}
    pieces = tuple(seen[piece.module, piece.role] for piece in graft.ports.pieces)
    return graft.blueprint.work_of(graft.ports._replace(pieces=pieces))


def _rounded(values: Sequence[float]) -> list[float | None]:
    """With four significant digits: telemetry is a sample, and its log large."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
