"""The birth check: can a graft of a blueprint be born, learn, run in a batch, and leave for a model without Esper."""

import torch
from torch import Tensor, fx

from esper.blueprints.blueprint import Blueprint, Ports
from esper.contracts.reports import POSITION_AXES

STEPS = 10
STEP_SIZE = 1e-2


@torch.enable_grad()
def birth_fault(blueprint: Blueprint, ports: Ports) -> str | None:
    """What is wrong with a blueprint as it is born at these ports, and what to do; None if nothing is.

    Checked are the shapes, that ``delta`` is 0 at birth to the bit, that every tensor receives gradient within ten
    steps of Adam's first kind (``STEP_SIZE`` against the sign), that ``torch.vmap`` over grafts changes nothing, and
    that the module for export does the same. What does not start at zero or is not trainable is excused from that.
    Errors that the blueprint itself raises come through as they are. The global random state stays as it was.
    """
    generator = torch.Generator().manual_seed(0)
    params, shapes = blueprint.init(ports, generator), blueprint.shapes(ports)
    born = {name: tuple(value.shape) for name, value in params.items()}
    if born != {name: tuple(shape) for name, shape in shapes.items()}:
        return f"init gives {born}, and shapes says {shapes}: they must agree"
    leading = (4, *[5, 3][: POSITION_AXES[ports.layout]])
    x = torch.randn(*leading, ports.inputs, generator=generator)
    target = torch.randn(*leading, ports.outputs, generator=generator)
    delta = blueprint.delta(params, x)
    if delta.shape != target.shape:
        return f"delta of x {list(x.shape)} is {list(delta.shape)} and must be {list(target.shape)}"
    if blueprint.starts_at_zero and delta.any():
        return "delta is not 0 at birth: let init draw the last factor as zeros"

    params, unmoved = _trained(blueprint, params, x, target)
    if blueprint.is_trainable and unmoved:
        return f"{', '.join(unmoved)} received no gradient in {STEPS} steps: only the last factor may be zero at birth"
    twice = {name: torch.stack([value, -value]) for name, value in params.items()}
    batched = torch.vmap(blueprint.delta)(twice, torch.stack([x, x]))
    for one, sign in zip(batched, (1, -1), strict=True):
        alone = blueprint.delta({name: sign * value for name, value in params.items()}, x)
        if not torch.allclose(one, alone, rtol=1e-4, atol=1e-5):
            return "torch.vmap over grafts changes what delta gives: write it with operations of torch alone"
    if not blueprint.starts_at_zero:
        return None
    try:
        plain = blueprint.to_module(ports, params)
    except fx.proxy.TraceError as error:
        return f"delta cannot be traced for export ({error}): branch on no shape of x, or define to_module"
    if not torch.allclose(plain(x), blueprint.delta(params, x), rtol=1e-4, atol=1e-5):
        return "its module for export does not give what delta gives"
    return None


def _trained(
    blueprint: Blueprint, params: dict[str, Tensor], x: Tensor, target: Tensor
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters after a few steps towards a target, and the names of those that received no gradient."""
    unmoved = set(params)
    for _ in range(STEPS if params else 0):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = (blueprint.delta(params, x) - target).square().mean()
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for (name, value), grad in zip(params.items(), grads, strict=True):
            if grad is not None and grad.any():
                unmoved.discard(name)
                params = params | {name: value - STEP_SIZE * grad.sign()}
    return {name: value.detach() for name, value in params.items()}, sorted(unmoved)
