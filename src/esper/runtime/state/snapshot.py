"""Capture and restore, byte for byte: one mechanism for rounds, checkpoints and rollback.

*Body* is what training has made: parameters, buffers, grafts, optimizer, scaler, the user's extras, gradients that
are still accumulating. *Clock* is where training stands: scheduler and random streams. Both are nested states of
plain values and tensors on the host that share no memory with the run.

A body that is kept for later lies on disk where the run has a directory, so that in memory there is at most one more
body than the live objects, and only while it is captured or gone back to.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.checkpoint.packed import Packed
from esper.checkpoint.tree import clone
from esper.contracts.errors import CheckpointError
from esper.kasmina.host.anchoring import is_espers, places
from esper.kasmina.host.wrapping import host_state_dict
from esper.kasmina.places.place import Place
from esper.runtime.record.journal import Journal
from esper.runtime.state.random_state import random_state, restore_random_state
from esper.runtime.training.optimizers import HostOptimizer
from esper.runtime.training.rewarming import BIRTHS
from esper.runtime.training.sharding import reshard
from esper.shards import Shard, cut, is_sharded, live, own

Stateful = Any
"""Whatever has ``state_dict`` and ``load_state_dict``."""

Body = dict[str, Any]

Kept = Body | Packed
"""A body for later."""


class Snapshots:
    """Captures and restores the objects of one run.

    Args:
        model: the wrapped model.
        optimizer: its optimizer.
        scheduler: its scheduler, or None.
        scaler: its gradient scaler, or None.
        extra: further objects with a state_dict that train with the model, by name.
        journal: where it is told that the disk is full.
        folder: on whose disk kept bodies lie; None keeps them in memory.
        mesh: over which parameters are sharded; None where they are not.

    Attributes:
        folder: likewise.
        mesh: likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: HostOptimizer,
        scheduler: Stateful | None,
        scaler: Stateful | None,
        extra: Mapping[str, Stateful],
        journal: Journal,
        folder: Path | None = None,
        mesh: Any = None,
    ) -> None:
        self.mesh = mesh
        self._model, self._optimizer = model, optimizer
        wrappers = {f"wrapper.{depth}": wrapper for depth, wrapper in enumerate(optimizer.wrappers)}
        self._in_body = {**{f"extra.{name}": item for name, item in extra.items()}, **wrappers, "scaler": scaler}
        self._scheduler, self._journal, self.folder = scheduler, journal, folder

    def keep(self) -> Kept:
        """What training has made so far, for later: on disk, or in memory where the disk cannot take it."""
        return self.put_aside(self.body())

    def put_aside(self, tree: dict[str, Any]) -> Kept:
        """A nested state that shares no memory with the run, for later: where :meth:`keep` puts bodies."""
        return tree if self.folder is None else self._put(None, tree)

    def fetch(self, kept: Kept) -> Body:
        """A kept body, to be used up: it shares no memory with what is kept.

        Parameter groups that the optimizer was given since stay as they are now.
        """
        body: Body = kept.read() if isinstance(kept, Packed) else clone(kept)
        return body | {"optimizer": self._with_later_groups(body["optimizer"])}

    def body(self) -> Body:
        """What training has made so far."""
        self._reshard()
        grads = {key: p.grad for key, p in self._optimizer.named_parameters() if p.grad is not None}
        body: Body = clone(
            {
                "kinds": self._kinds(),
                "topology": {place.layer_id: json.dumps(place.topology()) for place in places(self._model)},
                "model": dict(_tensors(self._model)),
                "extra_state": self._extra_state(),
                "grads": grads,
                "optimizer": self._optimizer.state_dict(),
                "others": {name: item.state_dict() for name, item in self._in_body.items() if item is not None},
            }
        )
        return body

    def restore_body(self, body: Body) -> None:
        """Go back to a body, in place: every parameter stays the same object. Uses the body up.

        Raises:
            CheckpointError: if it belongs to another model or other objects; nothing was changed then. Or if what it
                holds of seeds and grafts does not fit their topology, which the model has taken on by then.
        """
        self._check_fits(body)
        self._reshard()
        body = self._cut(body)
        for place in places(self._model):
            place.regrow(json.loads(body["topology"][place.layer_id]))
        self._check_own(body)
        with torch.no_grad():
            for name, tensor in list(_tensors(self._model)):
                _put_back(self._model, name, tensor, body["model"][name])
        if body["extra_state"]:
            self._model.load_state_dict(body["extra_state"], strict=False)
        body = body | {part: live(body[part], self.mesh) for part in ("others", "optimizer", "grads")}
        with _same_objects([*self._optimizer.wrappers, *self._optimizer.parts]):
            for name, state in body["others"].items():
                self._in_body[name].load_state_dict(state)
            self._optimizer.load_state_dict(body["optimizer"])
        for key, parameter in self._optimizer.named_parameters():
            grad = body["grads"].get(key)
            parameter.grad = None if grad is None else grad.to(parameter.device)

    def _cut(self, body: Body) -> Body:
        """A body in which this rank has its part of what is whole in it, as one process has written it."""
        if self.mesh is None:
            return body

        def part(saved: Any, of: Any) -> Any:
            if not is_sharded(of) or isinstance(saved, Shard) or saved.shape != of.shape:
                return saved
            (placement,) = of.placements
            return cut(saved, placement.dim, self.mesh.get_local_rank(), self.mesh.size())

        model, trained = dict(_tensors(self._model)), list(self._optimizer.parameters())
        by_key = dict(self._optimizer.named_parameters())
        states = {
            position: {
                name: part(value, trained[position]) if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
            for position, state in body["optimizer"]["state"].items()
        }
        return body | {
            "model": {name: part(saved, model[name]) for name, saved in body["model"].items()},
            "grads": {key: part(saved, by_key[key]) for key, saved in body["grads"].items()},
            "optimizer": body["optimizer"] | {"state": states},
        }

    def _reshard(self) -> None:
        if self.mesh is not None:
            reshard(self._model)

    def renew(self, kept: Kept, layer_id: str, part: str | None = None) -> Kept:
        """Let a kept body have one place as the model has it now, or one part of it (``"incubation"``).

        Returns:
            It; a body in memory in its place where the disk cannot take what it has become.
        """
        if not isinstance(kept, Packed):
            self._renew(kept, layer_id, part)
            return kept
        body = kept.read()
        self._renew(body, layer_id, part)
        return self._put(kept, body)

    def _put(self, packed: Packed | None, body: Body) -> Kept:
        """On disk in place of what is there, or for the first time."""
        try:
            packed = Packed(self.folder) if packed is None else packed
            packed.write(body)
        except OSError as error:
            self._journal.warn("kept states", f"A state of the run is kept in memory: {self.folder}: {error}.")
            return body
        self._journal.is_mended("kept states")
        return packed

    def _renew(self, body: Body, layer_id: str, part: str | None) -> None:
        found = [
            (name, module)
            for name, module in self._model.named_modules(remove_duplicate=False)
            if isinstance(module, Place) and module.layer_id == layer_id
        ]
        place = found[0][1]
        prefix = tuple(f"{name}." if part is None else f"{name}.{part}." for name, _ in found)
        others = {key: tensor for key, tensor in body["model"].items() if not key.startswith(prefix)}
        body["extra_state"] = body["extra_state"] | {
            key: value for key, value in self._extra_state().items() if key.startswith(prefix)
        }
        body["model"] = others | clone({key: t for key, t in _tensors(self._model) if key.startswith(prefix)})
        topology = place.topology()
        if part is not None:
            topology = json.loads(body["topology"][layer_id]) | {part: topology[part]}
        body["topology"] = body["topology"] | {layer_id: json.dumps(topology)}

    def optimizer_settings(self) -> list[dict[str, Any]]:
        """Parameter groups as they are now, in the form of a state dict."""
        groups: list[dict[str, Any]] = clone(self._optimizer.state_dict()["param_groups"])
        return groups

    def _with_later_groups(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A state of the optimizer, with what it has now for groups that were added after it."""
        groups = saved["param_groups"]
        if len(groups) >= len(self._optimizer.groups):
            return saved
        now = clone(self._optimizer.state_dict())
        first = sum(len(group["params"]) for group in groups)
        added = {position: state for position, state in now["state"].items() if position >= first}
        return saved | {
            "param_groups": [*groups, *now["param_groups"][len(groups) :]],
            "state": saved["state"] | added,
        }

    def clock(self) -> dict[str, Any]:
        """Where training stands."""
        return {"scheduler": self.scheduler(), "random": clone(random_state())}

    def restore_clock(self, clock: dict[str, Any]) -> None:
        """Inverse of :meth:`clock`. Learning rates are the optimizer's, in the body."""
        self.restore_scheduler(clock["scheduler"])
        restore_random_state(clone(clock["random"]))

    def scheduler(self) -> Any:
        """State of the scheduler; None without one."""
        return None if self._scheduler is None else clone(self._scheduler.state_dict())

    def restore_scheduler(self, state: Any) -> None:
        """Inverse of :meth:`scheduler`. What it has for groups that the optimizer was given since stays as it is."""
        if self._scheduler is None:
            return
        saved, now, count = clone(state), self._scheduler.state_dict(), len(self._optimizer.groups)
        for name, values in saved.items() if isinstance(saved, dict) else ():
            if isinstance(values, list) and isinstance(now.get(name), list) and len(values) < len(now[name]) == count:
                saved[name] = [*values, *clone(now[name][len(values) :])]
        self._scheduler.load_state_dict(saved)

    def _extra_state(self) -> dict[str, Any]:
        """What modules keep besides tensors; of places, whose topology comes first, what lies below them."""
        found = {key: value for key, value in host_state_dict(self._model).items() if key.endswith("_extra_state")}
        for name, module in self._model.named_modules(remove_duplicate=False):  # a state dict has shared ones twice
            if isinstance(module, Place):
                inner = module.state_dict(prefix=f"{name}.")
                del inner[f"{name}._extra_state"]
                found |= {key: value for key, value in inner.items() if key.endswith("_extra_state")}
        return found

    def _fixed_shapes(self, there: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors of the host here and there: shapes of parameters; of buffers, which a host may replace, the names."""
        parameters = {name for name, _ in self._model.named_parameters()}
        here = dict(_tensors(self._model))
        one, other = (
            {name: tuple(t.shape) if name in parameters else () for name, t in tensors.items() if not is_espers(name)}
            for tensors in (here, there)
        )
        return one, other

    def _kinds(self) -> dict[str, str]:
        """Class of every object whose state is captured, by its name in the session."""
        objects = {"scheduler": self._scheduler, **self._in_body}
        kinds = {name: type(item).__name__ for name, item in objects.items() if item is not None}
        return kinds | {"optimizer": ", ".join(type(part).__name__ for part in self._optimizer.parts)}

    def _check_fits(self, body: dict[str, Any]) -> None:
        pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("place", {place.layer_id: None for place in places(self._model)}, dict.fromkeys(body["topology"])),
            ("object", self._kinds(), body["kinds"]),
            ("tensor", *self._fixed_shapes(body["model"])),
            ("parameter group", _group_sizes(self._optimizer.groups), _group_sizes(body["optimizer"]["param_groups"])),
        ]
        remedy = "Build model, optimizer and session as they were when it was saved."
        for what, here, there in pairs:
            for name in sorted(here.keys() ^ there.keys()):
                owner = "this run" if name in here else "the checkpoint"
                raise CheckpointError(
                    f"The checkpoint is of another run: only {owner} has the {what} {name!r}. {remedy}"
                )
            for name, value in here.items():
                if value != there[name]:
                    raise CheckpointError(
                        f"The checkpoint is of another run: the {what} {name!r} is {value} here and {there[name]} "
                        f"there. {remedy}"
                    )

    def _check_own(self, body: Body) -> None:
        """Esper's own tensors have the shapes of the topology; those of a host may have others than now.

        Births grow with every graft that is new, whatever the topology is.
        """
        saved = body["model"]
        for name, tensor in _tensors(self._model):
            first = 1 if name.endswith(f".{BIRTHS}") else 0
            if is_espers(name) and (name not in saved or saved[name].shape[first:] != tensor.shape[first:]):
                raise CheckpointError(f"The checkpoint does not fit: {name} is not of the shape {tuple(tensor.shape)}.")
        if body["extra_state"].keys() != self._extra_state().keys():
            raise CheckpointError("The checkpoint does not fit: modules keep other things besides tensors.")


def _group_sizes(groups: list[dict[str, Any]]) -> dict[str, int]:
    return {str(index): len(group["params"]) for index, group in enumerate(groups)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, also those that a state dict leaves out; not the index tensors of groups."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not (is_espers(name) and ".groups." in name.rpartition("_esper.")[2]):
            yield name, tensor.data


def _put_back(model: nn.Module, name: str, tensor: Tensor, saved: Tensor | Shard) -> None:
    """In place where that is possible: a buffer may have been replaced by a longer one, or share its own memory."""
    if isinstance(saved, Shard):
        own(tensor).copy_(saved.local)
        return
    has_own_memory = not any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    if tensor.shape == saved.shape and has_own_memory:
        tensor.copy_(saved)
        return
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._buffers[leaf] = saved.to(tensor.device)


@contextmanager
def _same_objects(optimizers: list[Optimizer]) -> Iterator[None]:
    """Whatever is loaded inside, the optimizers' groups and states stay the objects that they were.

    Schedulers and callers hold them, and so do optimizers that wrap another, the last one of the list.
    """
    before = [(one, one.param_groups, [*one.param_groups], one.state) for one in optimizers]
    yield
    loaded = [([{**group} for group in one.param_groups], {**one.state}) for one in optimizers]
    for (one, groups, each, state), (new_groups, new_state) in zip(before, loaded, strict=True):
        for group, new in zip(each, new_groups, strict=True):
            group.clear()
            group.update(new)
        groups[:] = each
        state.clear()
        state.update(new_state)
        one.param_groups, one.state = groups, state
