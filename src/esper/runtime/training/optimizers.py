"""The user's optimizer as Esper needs it: which object really steps, what it holds, whether all that is captured."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.checkpoint.tree import flatten
from esper.contracts.errors import ConfigError

_ADAM_FAMILY = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)


class HostOptimizer:
    """The user's optimizer, and the torch optimizer within it whose ``step`` moves the parameters.

    Wrappers (Lookahead, that of ``accelerate``) and optimizers with two phases (SAM) leave the step to another
    optimizer over the same parameters, which they hold as an attribute. That one is hooked; what those around it
    remember is captured beside its own state.

    Args:
        optimizer: the user's.
        model: the wrapped model.
        extra: what is captured beside it, by name.

    Attributes:
        outer: the user's.
        stepping: the innermost one.
        wrappers: those around it, the outermost first.
        is_adam: whether its updates are as large as the rate: torch's Adam family, and what is named after it.

    Raises:
        ConfigError: if the steps cannot be seen, a wrapper's state cannot be captured, or the optimizer holds
            parameters that nobody captures.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, extra: Mapping[str, Any]) -> None:
        self.outer, self._model, self._extra = optimizer, model, extra
        *self.wrappers, self.stepping = _chain(optimizer)
        _refuse_unseen(self.stepping)
        for wrapper in self.wrappers:
            _refuse_stateless(wrapper, self.stepping)
        self.is_adam = _is_adam(self.stepping)
        self.check_captured()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as they are in this moment."""
        return self.stepping.param_groups

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
        missing = [parameter for parameter in self.parameters() if id(parameter) not in captured]
        if not missing:
            return
        others = [item.state_dict() for item in self._extra.values() if not isinstance(item, nn.Module | None)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in flatten(others)[1].values()}
        missing = [parameter for parameter in missing if parameter.untyped_storage().data_ptr() not in memory]
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


def _refuse_unseen(optimizer: Optimizer) -> None:
    if not _is_initialised(optimizer):
        raise ConfigError(
            f"{type(optimizer).__name__} has not called torch.optim.Optimizer.__init__, and has no attribute that is "
            "the one torch optimizer over its parameters. So Esper cannot see when it steps. Call super().__init__ in "
            "it, or give Session the optimizer that really steps."
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
