"""What the controller sees, and how far the host has moved since all was last well."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport
from esper.kasmina.hosts import covered_parameters, host_parameters
from esper.kasmina.place import Place
from esper.runtime.books import Lifecycle
from esper.runtime.run import Run
from esper.tamiyo.sizing import too_small
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
        seen = self._observation([self._report(place) for place in self._run.places.values()])
        self._tell_if_too_small(seen)
        return seen

    def observe_for(self, command: Command) -> Observation:
        """What the shield needs to see for a command: its place, and what would be grown if all that waits succeeds.

        Grafts that wait for live trials add up; of those that wait for a round one can be adopted, the largest counts.
        """
        run = self._run
        waiting = run.in_state(State.GERMINATED, State.TRAINING)
        added = {"live": [0, 0], "round": [0, 0]}
        for one in waiting:
            total = added[one.trial]
            for index, size in enumerate((one.parameters, self._multiply_adds(one))):
                total[index] = total[index] + size if one.trial == "live" else max(total[index], size)
        place = run.places.get(command.layer_id)
        seen = self._observation([] if place is None else [self._report(place)])
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
        found = {}
        for layer_id, place in self._run.places.items():
            columns = asdict(place.telemetry.report(scale)).items()
            told: dict[str, Any] = {name: _rounded(column) for name, column in columns if column is not None}
            states = place.state.lifecycle.tolist()
            awake = {str(seed): code for seed, code in enumerate(states) if code}
            if told | awake:
                found[layer_id] = told | ({"awake": awake} if awake else {})
        return found

    def note_weights(self) -> None:
        """All is well now: drift is measured from here."""
        self._weights = {layer_id: self._sample(layer_id) for layer_id in self._run.places}

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
            graft.blueprint.multiply_adds(graft.ports) * rows.get(name, 0)
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
            evaluation = run.evaluation_flops()
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
        text = too_small(seen, config)
        if text is not None:
            self._has_told = True
            self._run.journal.write("note", text=text)

    def _report(self, place: Place) -> PlaceReport:
        rows = (self._run.tracing.rows or {}).get(place.layer_id, 0)
        report = place.report(self._run.trainer.gradient_scale)
        return replace(report, rows=rows, drift=self._drift(place.layer_id))

    def _drift(self, layer_id: str) -> float | None:
        before = self._weights.get(layer_id)
        if before is None or not before.numel():
            return None
        length = before.norm()
        return float((self._sample(layer_id) - before).norm() / length) if length > 0 else None

    def _multiply_adds(self, one: Lifecycle) -> int:
        graft = self._run.places[one.layer_id].arena.grafts[one.number]
        return graft.blueprint.multiply_adds(graft.ports) * (self._run.tracing.rows or {}).get(one.layer_id, 0)

    @torch.no_grad()
    def _sample(self, layer_id: str) -> Tensor:
        """Evenly spaced weights ``[W]`` of a place's host modules, on the host, ``W`` at most about 4096."""
        parameters = self._covered[layer_id]
        stride = max(1, sum(parameter.numel() for parameter in parameters) // SAMPLED_WEIGHTS)
        parts = [parameter.detach().flatten()[::stride].float() for parameter in parameters]
        return torch.cat([part.cpu() for part in parts]) if parts else torch.zeros(0)


def _rounded(values: Sequence[float]) -> list[float | None]:
    """With four significant digits: telemetry is a sample, and its log large."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
