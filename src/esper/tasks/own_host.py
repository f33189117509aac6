"""A host of the user's own: ``module:factory``."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, closest
from esper.tasks.task import Samples, Task

OFFERED = ("inputs", "classes", "shape", "width_factor")
CHECKED_SAMPLES = 4


@dataclass(frozen=True)
class OwnHost:
    """A :class:`~esper.tasks.task.HostFactory` that calls the user's factory with the arguments it takes.

    Args:
        name: ``module:factory``, for messages.
        factory: a function or class.
        arguments: all but ``width_factor``.
        takes_width_factor: whether the factory has such a parameter.
    """

    name: str
    factory: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    takes_width_factor: bool = False

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        scale = {"width_factor": width_factor} if self.takes_width_factor else {}
        try:
            host = self.factory(**self.arguments, **scale)
        except (Exception, SystemExit) as error:  # the user's code: it may raise anything
            raise ConfigError(f"--host {self.name}: the factory raised {_told(error)}.") from error
        if not isinstance(host, nn.Module):
            raise ConfigError(
                f"--host {self.name} returned a {type(host).__name__}. It must return a torch.nn.Module, the host."
            )
        return host


def with_own_host(task: Task, name: str) -> Task:
    """The task with the host that ``name`` builds, and with samples in the data's own shape.

    The factory is a function or class that takes any of ``inputs`` (features of a sample; of a text, its different
    tokens), ``classes`` (outputs per sample; of a text, per position; 1 for a quantity), ``shape`` (of a sample)
    and ``width_factor`` (scales hidden widths, for a static network of the grown one's size). Samples are float32
    ``[n, *shape]``, or int64 ``[n, tokens]``; outputs must be ``[n, classes]``, or ``[n, tokens, classes]``. A quantity
    may also be ``[n]``.

    Args:
        task: what is learned.
        name: ``module:factory``; the module must be importable.

    Raises:
        ConfigError: if there is no such factory, or what it builds cannot learn the task.
    """
    factory = _imported(name)
    inputs = task.num_classes if task.is_text else task.train.x[0].numel()
    offered = {"inputs": inputs, "classes": task.num_classes, "shape": task.shape, "width_factor": 1.0}
    taken = _taken(name, factory)
    arguments = {argument: value for argument, value in offered.items() if argument in taken}
    has_factor = arguments.pop("width_factor", None) is not None
    host = OwnHost(name, factory, arguments, has_factor)
    train, held_out, test = (
        Samples(part.x.reshape(-1, *task.shape), part.y) for part in (task.train, task.held_out, task.test)
    )
    mean, std = (None if moment is None else moment.reshape(task.shape) for moment in (task.mean, task.std))
    own = replace(
        task,
        train=train,
        held_out=held_out,
        test=test,
        mean=mean,
        std=std,
        make_host=host,
        is_scalable=host.takes_width_factor,
    )
    with torch.random.fork_rng(devices=[]):
        _check(own, host)
    return own


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(f"--host {name!r} is not of the form module:factory, e.g. mypackage.models:small.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"--host {name}: importing {module_name} failed: {_told(error)}.") from error
        raise ConfigError(
            f"--host {name}: there is no module {error.name!r}, neither in the current directory nor on the Python "
            "path."
        ) from error
    except (Exception, SystemExit) as error:  # the user's code: it may raise anything
        raise ConfigError(f"--host {name}: importing {module_name} failed: {_told(error)}.") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        found = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ConfigError(f"--host {name}: {module_name} has no {attribute!r}. {closest(attribute, found)}")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigError(
            f"--host {name} is a {type(factory).__name__}, not a factory. Name a function that returns a new module "
            "each time it is called."
        )
    return factory


def _taken(name: str, factory: Callable[..., Any]) -> set[str]:
    """What of the offered arguments the factory takes."""
    parameters = inspect.signature(factory).parameters.values()
    by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [one.name for one in parameters if one.default is one.empty and one.kind not in variable]
    known = {one.name for one in by_name} & set(OFFERED)
    missing = [one for one in wanted if one not in known]
    if missing:
        raise ConfigError(
            f"--host {name}: the factory asks for {', '.join(missing)}. It may take any of {', '.join(OFFERED)}; give "
            "other parameters a default."
        )
    return known


def _check(task: Task, make_host: OwnHost) -> None:
    """One forward pass in eval mode must give logits that fit the labels."""
    host, again = make_host(), make_host()
    if host is again:
        raise ConfigError(
            f"--host {make_host.name} returned the same module twice. It must build a new one each time, since the "
            "controls start anew."
        )
    if next(host.parameters(), None) is None:
        raise ConfigError(f"--host {make_host.name} returned a module without parameters: nothing can be trained.")
    x = task.example(CHECKED_SAMPLES)
    try:
        with torch.no_grad():
            logits = host.eval()(x)
    except Exception as error:  # the user's code: it may raise anything
        raise ConfigError(
            f"--host {make_host.name}: the host cannot take samples of shape {list(x.shape)}, {x.dtype}: "
            f"{_told(error)}."
        ) from error
    wanted = [*(x.shape if task.is_text else x.shape[:1]), task.num_classes]
    possible, what = [wanted], "labels want logits"
    if task.kind == "regression":
        possible, what = [wanted, wanted[:1]], "target wants outputs"
    if not isinstance(logits, Tensor) or list(logits.shape) not in possible or not logits.is_floating_point():
        got = f"{list(logits.shape)}, {logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(
            f"--host {make_host.name}: for samples of shape {list(x.shape)} the host returned {got}; the {what} of "
            f"shape {wanted}{', one per class' if task.kind == 'classification' else ''}."
        )


def _told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
