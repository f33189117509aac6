"""Models whose parameters are spread over ranks by ``torch.distributed.fsdp.fully_shard``.

Grafts stay whole on every rank: ``fully_shard`` walks the children of modules, and what Esper keeps is none of them.
Outside of a step every parameter must be this rank's part. A forward pass leaves the model's own parameters whole until
the backward pass, as torch does for speed; where none follows, they would stay whole, and be out of date once their
parts have changed.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from esper.contracts.errors import ConfigError
from esper.kasmina.channels.carried import Beside, Carried, carried_by, carry
from esper.shards import is_sharded, is_sharded_module, whole


def mesh_of(model: nn.Module, size: int) -> Any:
    """The mesh over which parameters are sharded; None where none is.

    Args:
        model: the model; its parameters are parts afterwards.
        size: how many ranks there are.

    Raises:
        ConfigError: if it is none that Esper can work with.
    """
    reshard(model)
    sharded: list[Any] = [parameter for parameter in model.parameters() if is_sharded(parameter)]
    for parameter in sharded:
        mesh = parameter.device_mesh
        if mesh != sharded[0].device_mesh or mesh.ndim != 1 or mesh.size() != size:
            raise ConfigError(
                f"Parameters are spread over {mesh}. Esper works with one row of all {size} ranks, as "
                "fully_shard(module) makes it: neither HSDP nor tensor parallelism."
            )
        if parameter.to_local().device.type != mesh.device_type:
            raise ConfigError("Parameters are offloaded to the host, which Esper does not support: no OffloadPolicy.")
    return sharded[0].device_mesh if sharded else None


def reshard(model: nn.Module) -> None:
    """Let every rank hold its own parts of parameters and no more."""
    for module in _sharded_modules(model):
        module.reshard()


def hooked(model: nn.Module) -> list[RemovableHandle]:
    """Let a sharded model reshard after every forward pass without gradients, and torch's hooks at its sharded modules
    see plain tensors in memory of their own."""

    def after(*_: Any) -> None:
        if not torch.is_grad_enabled():
            reshard(model)

    handles = [model.register_forward_hook(after)]
    for module in _sharded_modules(model):
        bare = _Bare()
        handles += [
            module.register_forward_pre_hook(
                lambda _, *given, bare=bare: bare.take(given), prepend=True, with_kwargs=True
            ),
            module.register_forward_pre_hook(lambda _, *given, bare=bare: bare.give_back(given), with_kwargs=True),
            module.register_forward_hook(
                lambda _, __, output, bare=bare: bare.take(output, is_given=True), prepend=True
            ),
            module.register_forward_hook(lambda _, __, output, bare=bare: bare.give_back(output)),
        ]
    return handles


class _Bare:
    """Tensors as torch's hooks are to see them.

    Those that come to a module are replaced, and new channels beside them would be lost. Of those that it gives, as the
    sum with a graft may be, none must be a view: where something is done to one in place, torch would not gather the
    module's parameters again for the backward pass.
    """

    def __init__(self) -> None:
        self._beside: list[list[Beside]] = []

    def take(self, tree: Any, *, is_given: bool = False) -> Any:
        """The same without what is beside tensors, which is kept; without views where the module gives it."""
        leaves, spec = tree_flatten(tree)
        self._beside.append([carried_by(leaf) for leaf in leaves])
        bare = [leaf.host if isinstance(leaf, Carried) else leaf for leaf in leaves]
        return tree_unflatten([_in_own_memory(leaf) for leaf in bare] if is_given else bare, spec)

    def give_back(self, tree: Any) -> Any:
        """The same with what was beside them."""
        leaves, spec = tree_flatten(tree)
        return tree_unflatten([carry(leaf, one) for leaf, one in zip(leaves, self._beside.pop(), strict=True)], spec)


def _in_own_memory(leaf: Any) -> Any:
    is_view = isinstance(leaf, Tensor) and leaf._base is not None
    return leaf.clone() if is_view else leaf


def _sharded_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_sharded_module(module)]


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """As ``torch.nn.utils.clip_grad_norm_``, which takes no sharded gradients beside whole ones.

    Args:
        parameters: whose gradients are clipped, in place.
        max_norm: of all of them together.

    Returns:
        The norm before.
    """
    with_gradient = [one for one in parameters if one.grad is not None]
    kinds = [[one for one in with_gradient if is_sharded(one.grad) == kind] for kind in (True, False)]
    if not all(kinds):
        return nn.utils.clip_grad_norm_(with_gradient, max_norm)
    norms = [whole(get_total_norm([one.grad for one in kind if one.grad is not None])) for kind in kinds]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        clip_grads_with_norm_(kind, max_norm, total)
    return total
