"""Which modules of a model shall carry seeds: those that were named, or a sensible choice."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from esper.contracts.errors import ConfigError, closest
from esper.kasmina.host.edges import edge_of, first_and_last, is_adapted, is_around_adapters, is_opaque


@dataclass(frozen=True)
class Stretch:
    """A place before it is measured: first to last module, which are one for layers and blocks.

    Args:
        layer_id: name of the place.
        kind: ``"model"``, ``"span"``, ``"block"`` or ``"layer"``.
        names: dotted names of the modules.
        modules: the modules.
        num_seeds: seeds that were asked for; None leaves the number to the configuration.
        is_named: whether it was named itself, not found by a pattern or by choice.
        is_step: whether it is one of several blocks in a row, and no row itself.
    """

    layer_id: str
    kind: str
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    num_seeds: int | None = None
    is_named: bool = False
    is_step: bool = False

    @property
    def host_parameters(self) -> int:
        """Parameters of the modules, shared ones once."""
        unique = {parameter for module in self.modules for parameter in module.parameters()}
        return sum(parameter.numel() for parameter in unique)


def choose(model: nn.Module, layers: Any, exclude: Sequence[str] = (), *, is_measured: bool = False) -> list[Stretch]:
    """Candidates for ``GrowthConfig.layers``, without those that ``GrowthConfig.exclude`` forbids.

    Args:
        model: the host.
        layers: as in ``GrowthConfig``.
        exclude: likewise.
        is_measured: whether an example will show what candidates read and write. Modules of any class can be
            candidates then; else only those whose first and last layer tell.

    Raises:
        ConfigError: if a name or pattern means nothing, or nothing can carry seeds.
    """
    modules = dict(model.named_modules())
    hosts = {module for module in modules.values() if _can_host(module, is_measured=is_measured)}
    found = _wanted(modules, layers, hosts)
    places = [one.layer_id for one in found]
    for pattern in exclude:
        if not fnmatch.filter(places, pattern):
            within = f" What lies within a module is named by '{pattern}*'." if pattern in modules else ""
            raise ConfigError(f"exclude: {pattern!r} matches no place.{within} {closest(pattern, places)}")
    allowed = [one for one in found if not any(fnmatch.fnmatch(one.layer_id, pattern) for pattern in exclude)]
    if not allowed:
        raise ConfigError(
            f"exclude forbids every place that could carry seeds: {', '.join(map(repr, places))}. "
            "Leave one, or set max_rounds=0, which never grows."
        )
    steps = _steps(modules, hosts)
    return [replace(one, is_step=True) if one.layer_id in steps else one for one in allowed]


def _wanted(modules: dict[str, nn.Module], layers: Any, hosts: set[nn.Module]) -> list[Stretch]:
    """Candidates for ``GrowthConfig.layers``; ``hosts`` are modules that can carry seeds."""
    if layers is None:
        found = {one.layer_id: one for one in _automatic(modules, hosts)}
        if not found:
            raise ConfigError(
                "No layer of the model is one that Esper knows (Linear, Conv, Embedding, attention, GRU ...). Name the "
                "places: GrowthConfig(layers=[...]), and pass example=batch to esper.wrap."
            )
        return list(found.values())
    wanted = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)
    chosen: dict[str, Stretch] = {}
    for pattern, num_seeds in wanted.items():
        if not isinstance(pattern, str):
            raise ConfigError(f"layers must name places as strings, not {pattern!r}.")
        if num_seeds is not None and (type(num_seeds) is not int or num_seeds < 1):
            raise ConfigError(f"layers[{pattern!r}] must be a number of seeds of at least 1, not {num_seeds!r}.")
        for one in _matching(modules, pattern, num_seeds, hosts):
            chosen[one.layer_id] = one
    if not chosen:
        raise ConfigError("layers names no place. Name some, or leave it at None; max_rounds=0 never grows.")
    return list(chosen.values())


def _matching(
    modules: dict[str, nn.Module], pattern: str, num_seeds: int | None, hosts: set[nn.Module]
) -> Iterator[Stretch]:
    if ":" in pattern:
        yield _span(modules, pattern, num_seeds, is_named=True)
        return
    if pattern in modules:
        names = [pattern]
    else:
        inside = _inside_opaque(modules)
        names = [
            name
            for name, module in modules.items()
            if name and module in hosts and name not in inside and fnmatch.fnmatch(name, pattern)
        ]
    if not names:
        matched = [modules[name] for name in fnmatch.filter(filter(None, modules), pattern) if name not in inside]
        kinds = {type(module).__name__ for module in matched if _can_host(module, is_measured=True)}
        if kinds:
            raise ConfigError(
                f"layers: what {pattern!r} matches ({', '.join(sorted(kinds))}) does not tell its widths. Pass "
                "example=batch to esper.wrap."
            )
        near = closest(pattern, [name for name, module in modules.items() if name and module in hosts])
        raise ConfigError(f"layers: {pattern!r} matches no module that can carry seeds. {near}")
    for name in names:
        _refuse_adapters(modules, name)
        if not _is_called(modules[name]):
            kind = type(modules[name]).__name__
            raise ConfigError(f"layers: {name!r} is a {kind}, which is never called. Name what it holds.")
        yield _one(name, modules[name], num_seeds, is_named=name == pattern)


def _refuse_adapters(modules: dict[str, nn.Module], name: str) -> None:
    """Refuse what merging or unloading adapters would throw away."""
    around = [other for other in modules if name.startswith(f"{other}.") and is_adapted(type(modules[other]))]
    if around:
        raise ConfigError(
            f"layers: {name!r} is a part of {around[0]!r}, a layer with adapters: merging them would throw away what "
            f"grew there. Name {around[0]!r}."
        )
    if is_around_adapters(type(modules[name])):
        kind = type(modules[name]).__name__
        raise ConfigError(
            f"layers: {name!r} is a {kind}, which merging its adapters would throw away with what grew there. Name the "
            "model in it, 'base_model.model'."
        )


def _automatic(modules: dict[str, nn.Module], hosts: set[nn.Module]) -> Iterator[Stretch]:
    """Layers but norms, blocks that are steps of a container, halves of chains, the whole model."""
    inside = _inside_opaque(modules)
    whole = modules[""]
    if _can_host(whole, is_measured=False) and edge_of(whole) is None and not is_around_adapters(type(whole)):
        yield _one("", modules[""])
    for name, module in modules.items():
        if name in inside:
            continue
        parent = modules.get(name.rpartition(".")[0]) if name else None
        edge = edge_of(module)
        if edge is not None:
            if not edge.is_norm and _is_called(module):
                yield _one(name, module)
        elif name and module in hosts and (_is_block(module, parent) or _is_layer(module)):
            yield _one(name, module)
        if type(module) is nn.Sequential:
            yield from _halves(modules, name, module, hosts)


def _is_block(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether a module is a path of its own: a chain, or one of several blocks in a row."""
    return isinstance(module, nn.Sequential) or isinstance(parent, nn.Sequential | nn.ModuleList)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer: of a class that Esper knows, or one with parameters and no module within."""
    is_leaf = next(module.children(), None) is None and next(module.parameters(), None) is not None
    return is_leaf or edge_of(module) is not None


def _steps(modules: dict[str, nn.Module], hosts: set[nn.Module]) -> set[str]:
    """Blocks that come in a row of several, and hold no such row themselves."""
    in_rows: set[str] = set()
    for name, module in modules.items():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            prefix = f"{name}." if name else ""
            row = {
                prefix + step
                for step, child in module._modules.items()
                if child is not None and child in hosts and not _is_layer(child)
            }
            in_rows |= row if len(row) > 1 else set()
    return {name for name in in_rows if not any(other.startswith(f"{name}.") for other in in_rows)}


def _halves(modules: dict[str, nn.Module], name: str, chain: nn.Sequential, hosts: set[nn.Module]) -> Iterator[Stretch]:
    prefix = f"{name}." if name else ""
    children = ((step, modules.get(prefix + step)) for step in chain._modules)  # None: shared with an earlier one
    steps = [step for step, child in children if child is not None and child in hosts and not _is_norm(child)]
    if len(steps) >= 3:
        middle = steps[len(steps) // 2]
        for first, last in ((steps[0], middle), (middle, steps[-1])):
            yield _span(modules, f"{prefix}{first}:{prefix}{last}", None)


def _inside_opaque(modules: dict[str, nn.Module]) -> set[str]:
    """What is used without being called: parts of opaque modules, and what computes a layer's parameters."""
    opaque = tuple(f"{name}." for name, module in modules.items() if name and is_opaque(module))
    opaque += tuple(name for name, module in modules.items() if isinstance(module, ParametrizationList))
    return {name for name in modules if name.startswith(opaque)} if opaque else set()


def _can_host(module: nn.Module, *, is_measured: bool) -> bool:
    """Whether it is called, and what it reads and writes is told by its first and last layer, or will be measured."""
    is_known = first_and_last(module) is not None
    return _is_called(module) and (is_known or (is_measured and next(module.parameters(), None) is not None))


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _is_norm(module: nn.Module) -> bool:
    edge = edge_of(module)
    return edge is not None and edge.is_norm


def _one(name: str, module: nn.Module, num_seeds: int | None = None, *, is_named: bool = False) -> Stretch:
    kind = "layer" if edge_of(module) or (name and _is_layer(module)) else "block" if name else "model"
    return Stretch(name, kind, (name,), (module,), num_seeds, is_named)


def _span(modules: dict[str, nn.Module], pattern: str, num_seeds: int | None, *, is_named: bool = False) -> Stretch:
    first, _, last = pattern.partition(":")
    for name in (first, last):
        if name not in modules or not name:
            raise ConfigError(f"layers: {pattern!r} names no module {name!r}. {closest(name, filter(None, modules))}")
    prefix = first.rpartition(".")[0]
    container = modules[prefix]
    steps = [(name, child) for name, child in container._modules.items() if child is not None]
    start, end = (next((i for i, step in enumerate(steps) if step[1] is modules[name]), -1) for name in (first, last))
    if type(container).forward is not nn.Sequential.forward or not 0 <= start < end:
        raise ConfigError(
            f"layers: {pattern!r} is no span. Name two steps of one nn.Sequential, the earlier first, e.g. '0:2'."
        )
    covered = steps[start : end + 1]
    names = tuple(f"{prefix}.{name}" if prefix else name for name, _ in covered)
    return Stretch(pattern, "span", names, tuple(child for _, child in covered), num_seeds, is_named)
