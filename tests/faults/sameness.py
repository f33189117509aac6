"""Whether a wrapped model is the bare one to the bit, and whether a refusal left all as it was."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import esper

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in a nested value."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def told(call: Callable[[], Any]) -> tuple[str, Any]:
    """What a call gives, or the error of torch that it ends with."""
    try:
        return "gave", call()
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        if isinstance(error, esper.EsperError):
            raise
        return type(error).__name__, str(error).replace("Kasmina", "")


def trained(model: nn.Module, inputs: tuple[Any, ...], steps: int = 2) -> list[tuple[str, Any]]:
    """What a model gives in training and in eval mode, its gradients, and all of it after some steps of SGD."""
    seen: list[tuple[str, Any]] = [("state", bits(esper.host_state_dict(model)))]
    is_training = model.training
    for is_evaluated in (True, False):
        torch.manual_seed(3)
        model.train(is_training and not is_evaluated)
        how, output = told(lambda: model(*inputs))
        seen.append((how, [one.detach().clone() for one in tensors_in(output)] if how == "gave" else output))
    model.train(is_training)
    hosts = [(name, one) for name, one in model.named_parameters() if "_esper." not in name]
    trainable = [one for _, one in hosts if one.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.125) if trainable else None
    for _ in range(steps if optimizer else 0):
        torch.manual_seed(4)
        how, output = told(lambda: model(*inputs))
        graded = [one for one in tensors_in(output if how == "gave" else None) if one.requires_grad]
        if graded:
            sum(one.abs().square().sum() for one in graded).backward()
        seen.append((how, {name: one.grad.clone() for name, one in hosts if one.grad is not None}))
        optimizer.step()
        optimizer.zero_grad()
        seen.append(("state", bits(esper.host_state_dict(model))))
    return seen


def bits(value: Any) -> Any:
    """Something in which NaN equals itself, and -0 is not 0."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    if isinstance(value, Tensor):
        real = torch.view_as_real(value) if value.is_complex() else value
        if real.device.type == "meta":
            return ("meta", tuple(value.shape), str(value.dtype))
        if real.is_quantized:
            real = real.int_repr()
        return (str(value.dtype), tuple(value.shape), real.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(value) if isinstance(value, torch.dtype) else value


def assert_same(bare: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Outputs, gradients, and what a few training steps make of both, to the bit."""
    assert bits(trained(model, inputs)) == bits(trained(bare, inputs))


def everything(model: nn.Module) -> list[Any]:
    """All that a refusal must leave alone: modules, classes, modes, hooks, attributes, keys and bytes."""
    modules = [
        (name, type(module), module.training, [list(getattr(module, hooks)) for hooks in HOOKS], list(vars(module)))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    grads = [(name, one.requires_grad, bits(one.grad)) for name, one in model.named_parameters() if not _is_lazy(one)]
    state = [(name, value) for name, value in model.state_dict().items() if not isinstance(value, torch.dtype | tuple)]
    return [modules, grads, [(name, None if _is_lazy(value) else bits(value)) for name, value in state]]


def _is_lazy(value: Any) -> bool:
    return isinstance(value, nn.parameter.UninitializedTensorMixin)


@contextmanager
def refused(model: nn.Module | None, *named: str) -> Iterator[None]:
    """One typed error that names what is wrong in at least a sentence, after which the model is as before."""
    before = None if model is None else everything(model)
    with pytest.raises(esper.EsperError) as caught:
        yield
    assert_sentence(str(caught.value), named)
    assert model is None or everything(model) == before


def assert_sentence(message: str, named: tuple[str, ...]) -> None:
    """A message of one sentence or more with all these words in it."""
    missing = [word for word in named if word not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert len(message.split()) >= 5, message
    assert re.search(r"[.!)]$", message), message
