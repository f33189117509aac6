"""Isolated training: a graft learns beside the host, from samples of what the host does, and moves nothing of it.

Legend: R samples in a reservoir, B of a batch, ... positions, C channels of the place, K of the chunk, N parameters.

A sample is one element of the batch with all its positions; where rows stand for themselves, one row. Each has the
features that the graft reads, its chunk, and the loss gradient at the chunk in units of its step's root mean square,
so that neither batch size nor the scale of a gradient scaler matters. A reservoir is a ring of the latest samples that
a counter fills, without any random choice; every fourth sample is held out and never trained on. Samples enter it when
their gradient arrives, so none counts twice under gradient checkpointing. Samples of another shape than the first are
left out; so are those that are not finite.

Nothing here touches the host's tensors, its gradients, its optimizer or the global random state.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from esper.blueprints.blueprint import Blueprint
from esper.contracts.errors import ConfigError, closest
from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.activity import Activity
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.guard import finite_G, select_G
from esper.kasmina.grafts.objectives import OBJECTIVES, first_order_gain, pseudo_residual, relative_error
from esper.kasmina.grafts.strategies import TINY
from esper.kasmina.grafts.trainee import MIN_SAMPLES, Trainee, WatchedSamples
from esper.kasmina.kernels.adamw.ops import step_adamw
from esper.kasmina.kernels.adamw.reference import Rows
from esper.kasmina.seeds.seed_state import KeepsDtype

BATCH = 64
HELD_OUT_EVERY = 4
SCALES = (0.25, 0.5, 1.0, 2.0)
"""Of the last factor, besides 0."""

LEAST_Z = 2.33
"""Paired z-score over held-out samples by which a scale must beat 0."""


class Incubation(KeepsDtype):
    """Grafts of one place that train in isolation, with their reservoirs. Empty unless one does.

    Args:
        activities: of the host modules whose forward must run the place while one learns.
        device: where the place is.
        geometry: of the place.
    """

    home: Tensor

    def __init__(self, activities: list[Activity], device: torch.device, geometry: Geometry) -> None:
        super().__init__()
        self._activities = activities
        self.geometry = geometry
        self._trainees: dict[int, Trainee] = {}  # by lifecycle
        self.register_buffer("home", torch.zeros(0, device=device), persistent=False)  # knows the device

    @property
    def is_active(self) -> bool:
        """Whether a graft learns, so that forward passes have to be recorded."""
        return any(trainee.is_recording for trainee in self._trainees.values())

    def begin(self, graft: Graft, objective: str, seed: int, lr: float) -> bool:
        """Begin the training of a graft that is not live yet.

        Args:
            graft: it.
            objective: an id of ``OBJECTIVES``, or ``"none"``.
            seed: of its random streams.
            lr: learning rate.

        Returns:
            Whether it began: not with the objective ``"none"``, nor for a blueprint that never trains, nor for a
            colony, whose pieces mean nothing without each other.

        Raises:
            ConfigError: if there is no such objective.
        """
        if objective not in OBJECTIVES and objective != "none":
            raise ConfigError(f"There is no objective {objective!r}. {closest(objective, ('none', *OBJECTIVES))}")
        is_lone = graft.ports.pieces is None and graft.num_parameters
        if objective == "none" or not graft.blueprint.is_trainable or not is_lone:
            return False
        self._set(graft.lifecycle, Trainee(graft, objective, seed, lr))
        with torch.no_grad():
            self._of(graft.lifecycle, "params").copy_(graft.birth(seed))
        return True

    @torch.no_grad()
    def watch(self, x: Tensor | None, y: Tensor) -> list[WatchedSamples]:
        """Look at a forward pass in training.

        Args:
            x: the place's input ``[batch, ..., features]``; None if it has none that a graft could read.
            y: the place's output ``[batch, ..., C]``, as the host passes it on.

        Returns:
            What was seen, to be kept once its gradient arrives.
        """
        y, watched = y.detach(), []
        for lifecycle, trainee in self._trainees.items():
            read = y[..., slice(*trainee.graft.channels)] if trainee.graft.blueprint.reads_chunk else x
            if trainee.is_recording and read is not None and (seen := trainee.watch(read.detach(), y)) is not None:
                watched.append(seen)
                if trainee.shapes is None:
                    self._set(lifecycle, replace(trainee, shapes=seen.shapes))
        return watched

    @torch.no_grad()
    def keep(self, watched: list[WatchedSamples], gradient: Tensor) -> None:
        """Write samples into the ring; one that is not finite takes its place without counting.

        Args:
            watched: what a forward pass saw.
            gradient: of that pass' output ``[batch, ..., C]``.
        """
        gradient = gradient.detach()
        for seen in watched:
            trainee = self._trainees.get(seen.lifecycle)
            if trainee is None or not trainee.is_recording or trainee.shapes != seen.shapes:
                continue
            first, end = trainee.graft.channels
            gradient_B = trainee.samples(gradient[..., first:end])[seen.rows].float()
            counts_B = finite_G(seen.x) & finite_G(gradient_B) & torch.isfinite(seen.power)
            gradient_B = select_G(counts_B, gradient_B)
            power = gradient_B.square().sum() / (counts_B.sum() * gradient_B[0].numel()).clamp(min=1)
            gradient_B = gradient_B / power.clamp(min=TINY).sqrt()
            ring = self._of(seen.lifecycle, "seen")
            places = (ring + torch.arange(len(counts_B), device=ring.device)) % trainee.capacity
            for name, values in (("x", seen.x), ("chunk", seen.chunk), ("gradient", gradient_B), ("power", seen.power)):
                self._of(seen.lifecycle, name)[places] = select_G(counts_B, values.float())
            self._of(seen.lifecycle, "counts")[places] = counts_B
            ring += len(counts_B)

    def learn(self, lifecycle: int) -> None:
        """One step of a graft on its own samples; nothing before there are any, or where nothing was begun."""
        trainee = self._trainees.get(lifecycle)
        if trainee is None or not trainee.is_recording:
            return
        if trainee.shapes is not None:
            self._step(lifecycle, trainee)
        self._trainees[lifecycle] = replace(trainee, steps=trainee.steps + 1)

    def _step(self, lifecycle: int, trainee: Trainee) -> None:
        counts_R = self._of(lifecycle, "counts")
        seen = self._of(lifecycle, "seen").clamp(max=trainee.capacity)
        turns_B = trainee.steps * BATCH + torch.arange(BATCH, device=seen.device)
        turns_B = turns_B % (seen - seen // HELD_OUT_EVERY).clamp(min=1)
        rows_B = turns_B + turns_B // (HELD_OUT_EVERY - 1)  # passes over those that are held out
        residual = pseudo_residual(self._of(lifecycle, "gradient")[rows_B], self._output_power(lifecycle))
        generator = torch.Generator(seen.device)
        generator.manual_seed(((trainee.seed * 1_000_003 + lifecycle) * 1_000_003 + trainee.steps + 1) % 2**63)
        x, target = OBJECTIVES[trainee.objective](
            self._of(lifecycle, "x")[rows_B], self._of(lifecycle, "chunk")[rows_B], residual, generator
        )
        params = self._of(lifecycle, "params")
        with torch.enable_grad():
            leaf = params.detach().requires_grad_()
            delta = self._delta(trainee.graft, leaf, x, target)
            error = relative_error(delta, target, counts_R[rows_B])
            (grad,) = torch.autograd.grad(error, leaf)
        row = Rows(
            params.unsqueeze(0),
            grad.unsqueeze(0),
            self._of(lifecycle, "exp_avg").unsqueeze(0),
            self._of(lifecycle, "exp_avg_sq").unsqueeze(0),
            self._of(lifecycle, "updates"),
            counts_R[rows_B].any().unsqueeze(0),
        )
        step_adamw([row], trainee.lr, weight_decay=0.0)

    def _delta(self, graft: Graft, params: Tensor, x: Tensor, chunk: Tensor) -> Tensor:
        """What the graft adds to ``chunk [R, ..., K]``, of which only the positions count."""
        assert isinstance(graft.blueprint, Blueprint)
        delta = graft.blueprint.delta(graft.unflatten(params), x)
        return delta if graft.blueprint.reads == "chunk" else self.geometry.settle(delta, chunk)

    @torch.no_grad()
    def end(self, lifecycle: int) -> dict[str, float]:
        """Choose the bytes with which the graft goes on, by held-out samples, and let go of the reservoir.

        The parameters that were zero at birth, among them the last factor, are scaled by 0 and ``SCALES``; that scale
        is taken whose delta is nearest to the pseudo-residual, if it beats 0 by ``LEAST_Z`` over paired samples. At 0
        the graft is the exact identity again, with first layers that have learned; where it is not, as in families
        that do not start at zero, it goes on as it was born.

        Returns:
            Measured values by name, reading from the device; empty where nothing was begun:
            ``heldout_samples``, ``heldout_scale``, ``heldout_gain`` (share of the pseudo-residual's mean square that
            is explained), ``heldout_z``, ``heldout_descent`` (cosine between delta and descent, before scaling).
        """
        trainee = self._trainees.get(lifecycle)
        if trainee is None or not trainee.is_recording:
            return {}
        graft, params, birth = trainee.graft, self._of(lifecycle, "params"), trainee.graft.birth(trainee.seed)
        chosen, measured = birth, {"heldout_samples": 0.0, "heldout_scale": 0.0}
        is_held_out = self._held_out(lifecycle)
        if is_held_out.any():
            x_R = self._of(lifecycle, "x")[is_held_out]
            gradient_R = self._of(lifecycle, "gradient")[is_held_out]
            target_R = pseudo_residual(gradient_R, self._output_power(lifecycle))
            scalable = _zero_tensors(graft, birth).to(params.device)

            def scaled(scale: float) -> tuple[Tensor, Tensor]:
                candidate = torch.where(scalable, params * scale, params)
                return candidate, self._delta(graft, candidate, x_R, target_R)

            identity, none = scaled(0.0)
            if not none.any():
                chosen = identity
            before_R = target_R.square().flatten(1).mean(1)
            best = {"heldout_scale": 0.0, "heldout_gain": 0.0, "heldout_z": 0.0}
            for scale in SCALES:
                candidate, delta_R = scaled(scale)
                won_R = before_R - (delta_R - target_R).square().flatten(1).mean(1)
                gain = float(won_R.mean() / before_R.mean().clamp(min=TINY))
                z = float(won_R.mean() / (won_R.std(correction=0) / len(won_R) ** 0.5).clamp(min=TINY))
                if len(won_R) >= MIN_SAMPLES and z >= LEAST_Z and gain > best["heldout_gain"]:
                    best, chosen = {"heldout_scale": scale, "heldout_gain": gain, "heldout_z": z}, candidate
            delta_R = scaled(1.0)[1]
            length = (gradient_R.norm() * delta_R.norm()).clamp(min=TINY)
            descent = float(first_order_gain(gradient_R, delta_R) / length)
            measured = {"heldout_samples": float(len(x_R)), **best, "heldout_descent": descent}
        params.copy_(chosen)
        self._set(lifecycle, replace(trainee, is_recording=False))
        return measured

    def chosen(self, lifecycle: int) -> Tensor | None:
        """The bytes ``[N]`` with which a graft goes on, a view; None where nothing was begun."""
        return self._of(lifecycle, "params") if lifecycle in self._trainees else None

    def take(self, lifecycle: int) -> Tensor | None:
        """The bytes ``[N]`` with which a graft goes on, which end here; None where nothing was begun."""
        self.end(lifecycle)
        params = self.chosen(lifecycle)
        self.discard(lifecycle)
        return params

    def discard(self, lifecycle: int) -> None:
        """Throw away what belongs to a lifecycle, if there is anything."""
        self._set(lifecycle, None)

    def topology(self) -> dict[str, object]:
        """Who trains, as plain values: what must be rebuilt before bytes can be loaded."""
        return {"trainees": [trainee.to_dict() for trainee in self._trainees.values()]}

    def regrow(self, topology: dict[str, Any]) -> None:
        """Take on a topology; bytes are undefined until they are loaded."""
        if topology == self.topology():
            return
        for lifecycle in list(self._trainees):
            self._set(lifecycle, None)
        for saved in topology["trainees"]:
            trainee = Trainee.from_dict(saved)
            self._set(trainee.graft.lifecycle, trainee)

    def _set(self, lifecycle: int, trainee: Trainee | None) -> None:
        """Put a trainee in the place of what there was, with the buffers that it needs."""
        before, was_active = self._trainees.get(lifecycle), self.is_active
        needed = {} if trainee is None else trainee.buffers()
        for name in set() if before is None else before.buffers().keys() - needed.keys():
            del self._buffers[f"{name}_{lifecycle}"]
        for name, (shape, dtype) in needed.items():
            if f"{name}_{lifecycle}" not in self._buffers:
                self.register_buffer(f"{name}_{lifecycle}", torch.zeros(shape, dtype=dtype, device=self.home.device))
        if trainee is not None:
            self._trainees[lifecycle] = trainee
        elif before is not None:
            del self._trainees[lifecycle]
        for activity in self._activities:
            activity.count(self.is_active - was_active, grows=False)

    def _of(self, lifecycle: int, name: str) -> Tensor:
        return self.get_buffer(f"{name}_{lifecycle}")

    def _held_out(self, lifecycle: int) -> Tensor:
        """Bool ``[R]``: samples that count and are never trained on."""
        trainee = self._trainees[lifecycle]
        if trainee.shapes is None:
            return torch.zeros(0, dtype=torch.bool)
        rows = torch.arange(trainee.capacity, device=self.home.device)
        return self._of(lifecycle, "counts") & (rows % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)

    def _output_power(self, lifecycle: int) -> Tensor:
        """Mean square of the place's output, over the samples that are trained on."""
        counts_R = self._of(lifecycle, "counts") & ~self._held_out(lifecycle)
        return select_G(counts_R, self._of(lifecycle, "power")).sum() / counts_R.sum().clamp(min=1)


def _zero_tensors(graft: Graft, birth_N: Tensor) -> Tensor:
    """Bool ``[N]``: elements of tensors that are all zero at birth."""
    named = graft.unflatten(birth_N)
    return graft.flatten({name: (~value.any()).expand(value.shape) for name, value in named.items()})
