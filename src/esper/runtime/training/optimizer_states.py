"""States of optimizers: put back as they were; those of several as that of one over all their parameters, and back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

State = dict[str, Any]
"""As ``state_dict`` gives it: ``"state"`` by the position of parameters, ``"param_groups"``, and what else there is."""

_OF_ALL = ("state", "param_groups")


def restore_optimizer(optimizer: Optimizer, saved: State) -> None:
    """``load_state_dict`` casts states to their parameter's dtype; here they keep the dtype they were saved with."""
    optimizer.load_state_dict(saved)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in saved["state"].items():
        current = optimizer.state[parameters[index]]
        for name, value in state.items():
            if isinstance(value, Tensor) and current[name].dtype != value.dtype:
                current[name] = value.to(current[name].device)


def merged(states: Iterable[State]) -> State:
    """One state over the parameters of all, one optimizer after the other."""
    whole: State = {"state": {}, "param_groups": [], "rest": []}
    first = 0
    for state in states:
        groups = _moved_groups(state["param_groups"], first)
        whole["state"] |= {position + first: value for position, value in state["state"].items()}
        whole["param_groups"] += groups
        whole["rest"].append({key: value for key, value in state.items() if key not in _OF_ALL})
        first += _num_parameters(groups)
    return whole


def divided(whole: State, optimizers: Sequence[Optimizer]) -> Iterator[State]:
    """Inverse of :func:`merged`, for optimizers with as many groups as they had."""
    first, groups = 0, list(whole["param_groups"])
    for optimizer, rest in zip(optimizers, whole["rest"], strict=True):
        own, groups = groups[: len(optimizer.param_groups)], groups[len(optimizer.param_groups) :]
        end = first + _num_parameters(own)
        state = {position - first: value for position, value in whole["state"].items() if first <= position < end}
        yield rest | {"state": state, "param_groups": _moved_groups(own, -first)}
        first = end


def _moved_groups(groups: list[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    return [group | {"params": [position + by for position in group["params"]]} for group in groups]


def _num_parameters(groups: list[dict[str, Any]]) -> int:
    return sum(len(group["params"]) for group in groups)
