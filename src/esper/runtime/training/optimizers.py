"""The user's optimizer as Esper needs it: which object really steps, what it holds, whether all that is captured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.checkpoint.tree import flatten
from esper.contracts.errors import ConfigError
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.place import Place
from esper.runtime.training.optimizer_states import divided, merged, restore_optimizer
from esper.shards import is_sharded

_ADAM_FAMILY = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)


class HostOptimizer:
    """The user's optimizer, and the torch optimizer within it whose ``step`` moves the parameters; or several of them.

    Wrappers (Lookahead, that of ``accelerate``) and optimizers with two phases (SAM) leave the step to another
    optimizer over the same parameters, which they hold as an attribute. That one is hooked; what those around it
    remember is captured beside its own state. Several optimizers (Muon and AdamW) share the parameters out; groups and
    state are theirs one after the other, as if they were one.

    Args:
        optimizer: the user's, or all of them.
        model: the wrapped model.
        extra: what is captured beside it, by name.

    Attributes:
        outer: the user's.
        parts: the innermost one of each.
        stepping: the one of them that holds grafts.
        wrappers: those around them, the outermost first.
        is_adam: whether the updates of ``stepping`` are as large as the rate: torch's Adam family, and what is named
            after it.

    Raises:
        ConfigError: if the steps cannot be seen, a wrapper's state cannot be captured, the optimizer holds parameters
            that nobody captures, or two hold the same.
    """

    def __init__(self, optimizer: Optimizer | Sequence[Optimizer], model: nn.Module, extra: Mapping[str, Any]) -> None:
        self.outer = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
        if not self.outer:
            raise ConfigError(
                "optimizer is an empty list. Give Session one optimizer, or all that share the parameters."
            )
        for one in self.outer:
            if isinstance(one, type) or not isinstance(getattr(one, "param_groups", None), list):
                raise ConfigError(
                    f"optimizer must be a torch optimizer over model.parameters(), or a list of such, not {one!r:.80}."
                )
        self._model, self._extra = model, extra
        chains = [_chain(one) for one in self.outer]
        self.wrappers = [wrapper for chain in chains for wrapper in chain[:-1]]
        self.parts = tuple(chain[-1] for chain in chains)
        for *wrappers, part in chains:
            _refuse_unseen(part)
            for wrapper in wrappers:
                _refuse_stateless(wrapper, part)
        _refuse_shared(self.parts)
        self.stepping = next((part for part in self.parts if _grafts(part, model)), self.parts[0])
        self.is_adam = _is_adam(self.stepping)
        self.check_captured()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as they are in this moment."""
        return [group for part in self.parts for group in part.param_groups]

    def shares(self) -> Iterator[tuple[Optimizer, list[Place]]]:
        """Each part, and the places whose grafts it holds; those that none holds fall to the first."""
        left = list(places(self._model))
        shares = [_grafts(part, self._model) for part in self.parts]
        held = {id(place) for share in shares for place in share}
        shares[0] += [place for place in left if id(place) not in held]
        yield from zip(self.parts, shares, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Of all parts, as that of one optimizer over all their parameters."""
        states = [part.state_dict() for part in self.parts]
        return states[0] if len(states) == 1 else merged(states)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. States keep the dtype that they were saved with."""
        states = [saved] if len(self.parts) == 1 else divided(saved, self.parts)
        for part, state in zip(self.parts, states, strict=True):
            restore_optimizer(part, state)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that it holds."""
        return (parameter for group in self.groups for parameter in group["params"])

    def named_parameters(self) -> Iterator[tuple[Any, nn.Parameter]]:
        """All parameters that may hold a gradient of the training, each once, with a key that a checkpoint can hold.

        Those of the model by name, those of modules in ``extra`` by the module's name and their own, and others that
        the optimizer holds by their position in it.
        """
        known = set()
        modules = [((), self._model), *(((name,), module) for name, module in _modules(self._extra))]
        for owner, module in modules:
            for name, parameter in module.named_parameters():
                if id(parameter) not in known:
                    known.add(id(parameter))
                    yield (*owner, name) if owner else name, parameter
        for position, parameter in enumerate(self.parameters()):
            if id(parameter) not in known:
                yield position, parameter

    def check_captured(self) -> None:
        """Refuse parameters that arms would train and nobody could put back.

        Raises:
            ConfigError: if there are any.
        """
        modules = [self._model, *(module for _, module in _modules(self._extra))]
        captured = {id(parameter) for module in modules for parameter in module.parameters()}
        missing = [one for one in self.parameters() if one.numel() and id(one) not in captured]
        if not missing:
            return
        others = [item.state_dict() for item in self._extra.values() if not isinstance(item, nn.Module | None)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in flatten(others)[1].values()}
        missing = [parameter for parameter in missing if parameter.untyped_storage().data_ptr() not in memory]
        if missing and any(map(is_sharded, self._model.parameters())):
            raise ConfigError(
                "The optimizer holds parameters that the model has no more. Build it after fully_shard(model), before "
                "the model is called."
            )
        if missing:
            shapes = ", ".join(str(tuple(parameter.shape)) for parameter in missing[:3])
            raise ConfigError(
                f"The optimizer holds {len(missing)} parameter(s) that are neither in the model nor in extra (shapes: "
                f"{shapes}). Arms would train them, and nothing could put them back. Give their module to Session: "
                "extra={'criterion': criterion}; of a lone parameter, extra={'scale': nn.ParameterList([scale])}."
            )


def _modules(extra: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    return ((name, item) for name, item in extra.items() if isinstance(item, nn.Module))


def _chain(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer, the one that it hands its steps to, and so on."""
    chain = [optimizer]
    while True:
        held = _held(chain[-1])
        attributes = {id(value): value for value in vars(chain[-1]).values() if isinstance(value, Optimizer)}
        inner = [one for one in attributes.values() if all(one is not other for other in chain) and held <= _held(one)]
        if len(inner) != 1:
            return chain
        chain.append(inner[0])


def _grafts(optimizer: Optimizer, model: nn.Module) -> list[Place]:
    """The places whose grafts an optimizer holds."""
    held = _held(optimizer)
    return [place for place in places(model) if id(place.arena.slots) in held]


def _is_adam(optimizer: Optimizer) -> bool:
    names = (base.__name__.lower() for base in type(optimizer).__mro__)
    return isinstance(optimizer, _ADAM_FAMILY) or any("adam" in name for name in names)


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _is_initialised(optimizer: Optimizer) -> bool:
    """Whether it can be hooked, and torch's own ``state_dict`` works."""
    try:
        optimizer.register_step_pre_hook(lambda *_: None).remove()
    except AttributeError:
        return False
    return True


def _refuse_shared(parts: Sequence[Optimizer]) -> None:
    seen: set[int] = set()
    for part in parts:
        if seen & _held(part):
            raise ConfigError(
                f"{type(part).__name__} holds parameters that another optimizer of the list holds too. Share them out: "
                "each parameter to one optimizer."
            )
        seen |= _held(part)


def _refuse_unseen(optimizer: Optimizer) -> None:
    if not _is_initialised(optimizer):
        raise ConfigError(
            f"{type(optimizer).__name__} has not called torch.optim.Optimizer.__init__, and has no attribute that is "
            "the one torch optimizer over its parameters. So Esper cannot see when it steps. Call super().__init__ in "
            "it, or give Session the optimizer that really steps; of several, all in a list."
        )


def _refuse_stateless(wrapper: Optimizer, stepping: Optimizer) -> None:
    kind = type(wrapper)
    has_own = kind.state_dict is not Optimizer.state_dict and kind.load_state_dict is not Optimizer.load_state_dict
    if not has_own and not _is_initialised(wrapper):
        raise ConfigError(
            f"{kind.__name__} wraps {type(stepping).__name__}, but has neither called torch.optim.Optimizer.__init__ "
            "nor a state_dict and load_state_dict of its own, so what it remembers cannot be captured. Give it both, "
            f"or give Session the {type(stepping).__name__} itself."
        )
