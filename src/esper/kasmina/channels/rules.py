"""What treats every channel by itself, so that it is done with new channels as with the host's."""

import math
from collections.abc import Callable, Iterable, Sequence
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.kasmina.channels.carried import (
    RULES,
    Beside,
    Carried,
    Channels,
    New,
    Rule,
    carried_by,
    carry,
    leave_behind,
    listeners,
    plain,
)

Moves = Callable[..., "int | None"]
"""``(host, axis, *arguments of the operation) -> axis``: where the channels lie afterwards; None if they are mixed."""


def install(rule: Rule, *functions: Any) -> None:
    """Let torch's functions treat new channels by a rule."""
    RULES.update(dict.fromkeys(functions, rule))


def _named(*names: str) -> list[Any]:
    """What torch calls so: as a function, a method, or of ``torch.nn.functional``."""
    found = [getattr(room, name, None) for name in names for room in (torch, Tensor, F)]
    return [one for one in found if one is not None]


def moving(moves: Moves) -> Rule:
    """An operation on one tensor that does the same with all channels."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, *rest = args
        host, beside = plain(first), carried_by(first)
        moved: dict[Channels, int] = {}
        for key, new in beside.items():
            to = moves(host, new.axis, *rest, **kwargs)
            if to is None:
                return leave_behind(func, args, kwargs)
            moved[key] = to
        output = func(host, *rest, **kwargs)
        if output is host:  # such as a cast to the dtype that it has: gradients are to meet where they did
            return first
        done = {
            key: new._replace(tensor=func(new.tensor, *rest, **kwargs), axis=moved[key]) for key, new in beside.items()
        }
        return carry(output, done)

    return rule


def _stays(host: Tensor, axis: int, *args: Any, **kwargs: Any) -> int:
    return axis


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation that writes its result into its first argument."""
    first, *rest = args
    func(plain(first), *rest, **kwargs)
    for new in carried_by(first).values():
        func(new.tensor, *rest, **kwargs)
    return first


def _activation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One of ``torch.nn.functional``, in place where it is asked for so."""
    is_in_place = kwargs.get("inplace") is True or (len(args) > 1 and args[-1] is True)
    return (_in_place if is_in_place else _EACH)(func, args, kwargs)


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The host draws what it would have drawn; the new channels' draws leave no trace in the random stream. In a
    compiled model they do: its stream has no state that could be put back."""
    if torch.compiler.is_compiling():
        return _EACH(func, args, kwargs)
    first, *rest = args
    host = plain(first)
    before = _random_state(host.device)
    output = func(host, *rest, **kwargs)
    after, found = _random_state(host.device), {}
    for key, new in carried_by(first).items():
        _set_random_state(host.device, before)
        found[key] = new._replace(tensor=func(new.tensor, *rest, **kwargs))
    _set_random_state(host.device, after)
    return carry(output, found)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def combining(*, is_sum: bool, is_in_place: bool = False) -> Rule:
    """An operation on two tensors, channel by channel. Where one of them is as wide as the host's channels and has no
    new ones, those are 0 in a sum and 1 in a product."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        a, b, *rest = args
        ours, theirs = _met([carried_by(a), carried_by(b)])
        if (is_in_place and not theirs.keys() <= ours.keys()) or not _lie_alike(a, ours, b, theirs):
            return leave_behind(func, args, kwargs)
        output = func(plain(a), plain(b), *rest, **kwargs)
        new = {}
        for key in dict.fromkeys((*ours, *theirs)):
            where = ours.get(key) or theirs[key]
            one = ours[key].tensor if key in ours else _stand_in(a, theirs[key], plain(b), theirs, is_sum=is_sum)
            other = theirs[key].tensor if key in theirs else _stand_in(b, ours[key], plain(a), ours, is_sum=is_sum)
            axis = _shifted(where.axis, a, b, output)
            new[key] = where._replace(tensor=func(one, other, *rest, **kwargs), axis=axis)
        return a if is_in_place and isinstance(a, Carried) else carry(output, new)

    return rule


def _lie_alike(a: Any, ours: Beside, b: Any, theirs: Beside) -> bool:
    """Whether as many positions lie between channels on both sides; a side without new ones has none to lie so."""
    positions = {new.positions for beside in (ours, theirs) for new in beside.values()}
    is_one_sided = isinstance(a, Tensor) and isinstance(b, Tensor) and not (ours and theirs)
    return len(positions) <= 1 and (positions <= {1} or not is_one_sided)


def _shifted(axis: int, a: Any, b: Any, output: Tensor) -> int:
    """The axis where the tensor with channels has fewer axes than what it is put together with."""
    own = [x.dim() for x in (a, b) if isinstance(x, Carried)]
    return axis + output.dim() - own[0]


def _stand_in(other: Any, new: New, host: Tensor, beside: Beside, *, is_sum: bool) -> Any:
    """What new channels meet where the other side has none: itself, if it is the same for all channels."""
    if not isinstance(other, Tensor) or other.dim() == 0:
        return plain(other)
    axis = new.axis - host.dim() + other.dim()
    if axis < 0 or other.shape[axis] == 1:
        return plain(other)
    for listener in listeners:
        listener.meet_plain(beside, plain(other), is_sum=is_sum)
    shape = list(other.shape)
    shape[axis] = 1
    return plain(other).new_full(shape, 0.0 if is_sum else 1.0)


def _put_together(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``torch.cat``, along another axis than that of the channels. What has no new ones has zeros for them."""
    tensors, *rest = args or (kwargs.pop("tensors"),)
    host, every = [plain(one) for one in tensors], _met([carried_by(one) for one in tensors])
    output = func(host, *rest, **kwargs)
    first = {key: new for beside in reversed(every) for key, new in beside.items()}
    lying = {(new.axis, new.positions) for beside in every for new in beside.values()}
    dim = (rest[0] if rest else kwargs.get("dim", 0)) % output.dim()
    if any(axis == dim or positions > 1 for axis, positions in lying) or len(lying) > 1:
        return leave_behind(func, (tensors, *rest), kwargs)
    found = {}
    for key, like in first.items():
        parts = [
            beside[key].tensor if key in beside else _nothing(one, like, first)
            for one, beside in zip(host, every, strict=True)
        ]
        found[key] = New(func(parts, *rest, **kwargs), like.axis)
    return carry(output, found)


def _met(every: list[Beside]) -> list[Beside]:
    """While a model is traced, channels that are put together are of one class: all have the names of the first."""
    carrying = [beside for beside in every if beside]
    if not listeners or len(carrying) < 2:
        return every
    for beside in carrying[1:]:
        for listener in listeners:
            listener.meet(carrying[0], beside)
    return [dict.fromkeys(carrying[0], next(iter(beside.values()))) if beside else beside for beside in every]


def _nothing(other: Tensor, like: New, beside: Beside) -> Tensor:
    """New channels of a tensor that has none."""
    for listener in listeners:
        listener.meet_plain(beside, other, is_sum=True)
    shape = list(other.shape)
    shape[like.axis] = like.tensor.shape[like.axis]
    return like.tensor.new_zeros(shape)


def _transposed(host: Tensor, axis: int, *dims: int, **named: int) -> int:
    first, second = (dim % host.dim() for dim in (*dims, *named.values()))
    return {first: second, second: first}.get(axis, axis)


def _permuted(host: Tensor, axis: int, *order: Any, dims: Sequence[int] = ()) -> int:
    dims = dims or (order[0] if isinstance(order[0], Sequence) else order)
    return [dim % host.dim() for dim in dims].index(axis)


def _flatten(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, *rest = args
    host, found = plain(first), {}
    named = {"start_dim": 0, "end_dim": -1} | dict(zip(("start_dim", "end_dim"), rest, strict=False)) | kwargs
    start, end = (named[name] % host.dim() for name in ("start_dim", "end_dim"))
    if start == end:
        return first
    for key, new in carried_by(first).items():
        merged = _merged(host, new, start, end)
        if merged is None:
            return leave_behind(func, args, kwargs)
        found[key] = merged
    return carry(func(host, *rest, **kwargs), found)


def _merged(host: Tensor, new: New, start: int, end: int) -> New | None:
    """New channels once the axes from ``start`` to ``end`` are one; None if they are cut up then."""
    tensor, axis = new.tensor.flatten(start, end), new.axis
    if not start <= axis <= end:
        return new._replace(tensor=tensor, axis=axis if axis < start else axis - (end - start))
    if axis == end:  # all positions in front, each with its channels in a row
        return New(tensor, start, new.positions * math.prod(host.shape[start:end]))
    # channels are the slowest: new ones come behind all of the host's
    return New(tensor, start) if axis == start and new.positions == 1 else None


def _unsqueezed(host: Tensor, axis: int, dim: int) -> int:
    return axis + (dim % (host.dim() + 1) <= axis)


def _reduced(host: Tensor, axis: int, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> int | None:
    if dim is None:
        return None
    dims = {one % host.dim() for one in (dim if isinstance(dim, Iterable) else (dim,))}
    if axis in dims:
        return None
    return axis if keepdim else axis - sum(one < axis for one in dims)


def _pooled(host: Tensor, axis: int, *args: Any, **kwargs: Any) -> int | None:
    return axis if axis == 1 else None


def _padded(host: Tensor, axis: int, pad: Sequence[int], *args: Any, **kwargs: Any) -> int | None:
    return axis if axis < host.dim() - len(pad) // 2 else None


def _indexed(host: Tensor, axis: int, index: Any) -> int | None:
    """Slices and whole numbers, of other axes than that of the channels."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(one is None or isinstance(one, int | slice | EllipsisType) for one in items):
        return None
    used = sum(one is not None and one is not Ellipsis for one in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    read = written = 0
    for one in items:
        if one is None:
            written += 1
            continue
        span = host.dim() - used if one is Ellipsis else 1
        if read <= axis < read + span:
            is_whole = one is Ellipsis or one == slice(None)
            return written + axis - read if is_whole else None
        read += span
        written += 0 if isinstance(one, int) else span
    return None


def _unfolded(host: Tensor, axis: int, dimension: int, size: int, step: int) -> int | None:
    return None if dimension % host.dim() == axis else axis


def _reshaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where the last axes, that of the channels among them, become one, or those in front of channels that lie last
    change."""
    first, *rest = args
    sizes = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], Sequence) else rest
    host, found = plain(first), {}
    output = func(host, *rest, **kwargs)
    shape, last = list(output.shape), output.dim() - 1
    for key, new in carried_by(first).items():
        if new.axis == host.dim() - 1 and shape[-1:] == [host.shape[-1]]:
            tensor = new.tensor.reshape(*shape[:-1], new.tensor.shape[-1])
            merged: New | None = new._replace(tensor=tensor, axis=last)
        else:
            is_kept = last <= new.axis and shape[:last] == list(host.shape[:last])
            merged = _merged(host, new, last, host.dim() - 1) if is_kept else None
        if merged is None:
            return leave_behind(func, args, kwargs)
        found[key] = merged
    return carry(output, found) if all(isinstance(size, int) for size in sizes) else output


_EACH = moving(_stays)

install(
    _EACH,
    *_named("abs", "clamp", "clone", "cos", "contiguous", "detach", "erf", "exp", "gelu", "log", "neg", "pow", "relu"),
    *_named("rsqrt", "sigmoid", "sin", "sqrt", "square", "tanh", "to", "type", "float", "half", "double", "bfloat16"),
    *_named("softplus", "softsign", "logsigmoid", "tanhshrink", "relu6", "hardsigmoid", "identity"),
    Tensor.__neg__,
    Tensor.__pow__,
)
install(_in_place, *_named("relu_", "sigmoid_", "tanh_", "clamp_", "neg_", "abs_"))
install(_activation, F.relu, F.silu, F.mish, F.elu, F.celu, F.selu, F.leaky_relu, F.hardtanh, F.hardswish, F.relu6)
install(_activation, F.hardsigmoid)
install(_dropout, F.dropout, F.alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout)
install(combining(is_sum=True), *_named("add", "sub", "subtract"), Tensor.__add__, Tensor.__sub__)
install(combining(is_sum=True), Tensor.__radd__, Tensor.__rsub__)
install(combining(is_sum=True, is_in_place=True), Tensor.add_, Tensor.sub_, Tensor.__iadd__, Tensor.__isub__)
install(combining(is_sum=False), *_named("mul", "multiply", "div", "true_divide"), Tensor.__mul__, Tensor.__truediv__)
install(combining(is_sum=False), Tensor.__rmul__)
install(combining(is_sum=False, is_in_place=True), Tensor.mul_, Tensor.div_, Tensor.__imul__, Tensor.__itruediv__)
install(_put_together, torch.cat, torch.concat, torch.concatenate)
install(moving(_transposed), *_named("transpose", "swapaxes"))
install(moving(_permuted), *_named("permute"))
install(_flatten, *_named("flatten"))
install(moving(_unfolded), Tensor.unfold)
install(moving(_unsqueezed), *_named("unsqueeze"))
install(moving(_reduced), *_named("mean", "sum", "amax", "amin"))
install(moving(_pooled), *_named(*(f"{kind}_pool{axes}d" for kind in ("avg", "max", "lp") for axes in (1, 2, 3))))
install(moving(_pooled), *_named(*(f"adaptive_{kind}_pool{axes}d" for kind in ("avg", "max") for axes in (1, 2, 3))))
install(moving(_pooled), F.interpolate)
install(moving(_padded), F.pad)
install(moving(_indexed), Tensor.__getitem__)
install(_reshaped, *_named("reshape", "view"))
