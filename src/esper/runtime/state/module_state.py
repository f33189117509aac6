"""What modules keep besides tensors, as far as training loops move it: modes, plain attributes, what is frozen.

``requires_grad``, train and eval modes of parts, ``dropout.p``, a temperature, a counter of passes: no ``state_dict``
holds them, and a step that is taken once more needs them as they were.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from esper.kasmina.host.copies import ESPER

Facts = dict[str, dict[str, Any]]
"""By module, the values of its plain attributes, and of ``<parameter>.requires_grad``."""

PLAIN = frozenset({bool, int, float, str, type(None)})

_TORCHS = frozenset(vars(nn.Module())) - {"training"}
"""What torch itself keeps in every module."""

STREAMS = "..random"
"""Beside the facts of modules, none of which has such a name."""

_FROZEN = ".requires_grad"


class ModuleHistory:
    """The facts before each step of a window, each as its difference from those before.

    Args:
        changes: of every step so far; a module that has changed is in it whole.
    """

    def __init__(self, changes: list[Facts] | None = None) -> None:
        self.changes = changes or []
        self._at: tuple[int, Facts] = (-1, {})

    def remember(self, facts: Facts, streams: dict[str, Any] | None = None) -> None:
        """One more step; ``streams`` are the random streams from which the loop had drawn before it."""
        before = self.before(len(self.changes) - 1)
        self.changes.append({name: now for name, now in facts.items() if before.get(name) != now})
        if streams:
            self.changes[-1][STREAMS] = streams
        self._at = len(self.changes) - 1, facts

    def streams(self, step: int) -> dict[str, Any]:
        """The random streams that were remembered with a step."""
        return self.changes[step].get(STREAMS, {}) if step < len(self.changes) else {}

    def before(self, step: int) -> Facts:
        """The facts before a step, counted from 0; cheap for one step after the other."""
        index, facts = self._at
        if step < index:
            index, facts = -1, {}
        for changes in self.changes[index + 1 : step + 1]:
            facts = facts | changes
        self._at = max(index, step), facts
        return facts


def module_facts(model: nn.Module) -> Facts:
    """The facts of all modules but Esper's own."""
    return {name: _facts(module) for name, module in _modules("", model)}


def set_module_facts(model: nn.Module, facts: Facts) -> None:
    """Let all modules have the values of :func:`module_facts`. Those that have them already are not touched."""
    for name, module in _modules("", model):
        wanted, now, attributes = facts.get(name), _facts(module), vars(module)
        if wanted is None or wanted == now:
            continue
        for key in now.keys() - wanted.keys():
            if not key.endswith(_FROZEN):
                del attributes[key]
        for key, value in wanted.items():
            if key in now and now[key] == value:
                continue
            if key.endswith(_FROZEN):
                parameter = module._parameters.get(key.removesuffix(_FROZEN))
                if parameter is not None:
                    parameter.requires_grad_(value)
            elif key in now or key not in attributes:  # an attribute that has become more than plain is left alone
                attributes[key] = value


def _facts(module: nn.Module) -> dict[str, Any]:
    found = {key: value for key, value in vars(module).items() if type(value) in PLAIN and key not in _TORCHS}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found[name + _FROZEN] = parameter.requires_grad
    return found


def _modules(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for child, part in module._modules.items():
        if part is not None and child != ESPER:
            yield from _modules(f"{name}.{child}" if name else child, part)
