"""Which modules can carry seeds; giving them seeds, and taking them away."""

import fnmatch
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.kasmina.layer import ESPER, Anchor, KasminaLayer, Place, kasmina_class


@dataclass(frozen=True)
class _Site:
    """A place before it exists: first and last module, which are one for layers and blocks."""

    layer_id: str
    kind: str
    modules: tuple[nn.Module, ...]

    @property
    def host_parameters(self) -> int:
        unique = {parameter for module in self.modules for parameter in module.parameters()}
        return sum(parameter.numel() for parameter in unique)


def wrap(model: nn.Module, config: GrowthConfig | None = None, example: Any = None) -> nn.Module:
    """Give a model seeds, in place. Until one of them grows, the model computes exactly what it did before.

    Args:
        model: the host. Wrap it before the optimizer is built.
        config: where and how much it may grow; see :class:`esper.GrowthConfig`.
        example: an input of the model (a tensor, or a tuple of positional arguments), from which the widths of places
            are measured. Needed only where first and last layer of a place do not tell.

    Returns:
        The same object.

    Raises:
        ConfigError: if the model cannot be wrapped, a pattern matches nothing, or a place cannot carry seeds; the
            model is unchanged then.
    """
    config = config or GrowthConfig()
    for blueprint_id in config.blueprints:
        make_blueprint(blueprint_id, {})
    _refuse_unfit(model)
    sites = _choose_sites(model, config.layers)
    for site, _ in sites:
        for end in (site.modules[0], site.modules[-1]):
            _refuse_unswappable(f"{site.layer_id!r}", end)
    _refuse_unswappable("The model", model)
    measured = _measure(model, [site for site, _ in sites], example) if example is not None else {}
    like = next(model.parameters())
    found = []
    for site, wanted in sites:
        ports = measured.get(site.layer_id) or _ports_from_parameters(site)
        num_seeds = wanted
        if num_seeds is None:
            num_seeds = min(config.seeds_per_layer, ports.outputs) if site.kind == "layer" else 1
        if num_seeds > ports.outputs:
            raise ConfigError(
                f"{site.layer_id!r} has {ports.outputs} output channels and cannot carry {num_seeds} seeds. "
                f"Ask for at most {ports.outputs}."
            )
        parameter = next((p for p in site.modules[-1].parameters()), like)
        place = Place(
            site.layer_id, site.kind, ports, num_seeds, site.host_parameters, like=parameter, seed=config.seed
        )
        found.append((site, place))
    _anchor(model).config = config
    for site, place in sorted(found, key=lambda pair: pair[0].kind == "span"):  # a module's own seeds write first
        _anchor(site.modules[-1]).hold(_key(site), place)
        if site.kind == "span":
            _anchor(site.modules[0]).feed(place)
    for module in _wrapped(model):
        module._esper.train(module.training)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Take all seeds away, in place: the model is of its old class again, with nothing of Esper in it.

    Raises:
        ConfigError: if the model has grown, since the bare host alone would compute something else.
    """
    grown = [place.layer_id for place in places(model) if place.is_growing]
    if grown:
        raise ConfigError(
            f"The model has grown at {', '.join(map(repr, grown))}; without its grafts it would compute something "
            "else. esper.export(model) keeps them; esper.host_state_dict(model) gives the bare host's weights."
        )
    for module in _wrapped(model):
        del module._modules[ESPER]
        module.__class__ = module.esper_base  # type: ignore[assignment]
    return model


def host_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without Esper's keys: it loads strictly into the bare host."""
    return {key: value for key, value in model.state_dict().items() if f".{ESPER}." not in f".{key}"}


def places(model: nn.Module) -> Iterator[Place]:
    """All places of a wrapped model, each once; those of a module after those of its children."""
    for module in model.modules():
        if isinstance(module, Place):
            yield module


def growth_config(model: nn.Module) -> GrowthConfig:
    """The configuration that a model was wrapped with.

    Raises:
        ConfigError: if it was not wrapped.
    """
    anchor = getattr(model, ESPER, None)
    if anchor is None or anchor.config is None:
        raise ConfigError("The model carries no seeds. Call esper.wrap(model, config) before anything else.")
    assert isinstance(anchor.config, GrowthConfig)
    return anchor.config


def host_parameters(model: nn.Module) -> int:
    """Parameters of the bare host."""
    return sum(p.numel() for name, p in model.named_parameters() if f".{ESPER}." not in f".{name}")


def _wrapped(model: nn.Module) -> list[KasminaLayer]:
    return [module for module in model.modules() if isinstance(module, KasminaLayer)]


def _anchor(module: nn.Module) -> Anchor:
    if not isinstance(module, KasminaLayer):
        module.__class__ = kasmina_class(type(module))
        module.add_module(ESPER, Anchor())
    anchor = module._modules[ESPER]
    assert isinstance(anchor, Anchor)
    return anchor


def _key(site: _Site) -> str:
    return "own" if site.kind != "span" else "from_" + site.layer_id.split(":")[0].replace(".", "_")


_COMPILED_OR_DISTRIBUTED = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def _refuse_unfit(model: nn.Module) -> None:
    for path, module in model.named_modules():
        name = repr(path) if path else "The model"
        if isinstance(module, KasminaLayer):
            raise ConfigError(f"{name} already carries seeds. Call esper.unwrap(model) first.")
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(f"{name} is scripted. Wrap the model before torch.jit.script.")
        bases = [base.__name__ for base in type(module).__mro__ if base.__name__ in _COMPILED_OR_DISTRIBUTED]
        if bases or module._compiled_call_impl is not None:
            kind = bases[0] if bases else "compiled module"
            raise ConfigError(f"{name} is already a {kind}. Wrap the bare model first, then compile or distribute it.")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ConfigError(f"{name} is lazy. Run the model once on an example batch, then wrap it.")
    if next(model.parameters(), None) is None:
        raise ConfigError("The model has no parameters, so there is nothing to train.")


def _refuse_unswappable(name: str, module: nn.Module) -> None:
    """Refuse a module in which the swapped class would never run, or whose code would run Esper's own child."""
    kind = type(module)
    if "forward" in vars(module):
        raise ConfigError(
            f"{name} ({kind.__name__}) has a forward of its own on the instance, which a class swap cannot see. Put it "
            "into a class."
        )
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    if code is not None and _mentions(code, "_modules"):
        raise ConfigError(
            f"{name}: {kind.__name__}.forward walks self._modules and would run Esper's own child. Iterate over "
            "self.children() instead."
        )


def _mentions(code: CodeType, attribute: str) -> bool:
    """Whether a function, or one defined in it, reads an attribute of this name."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return attribute in code.co_names or any(_mentions(one, attribute) for one in inner)


def _choose_sites(model: nn.Module, layers: Any) -> list[tuple[_Site, int | None]]:
    modules = dict(model.named_modules())
    if layers is None:
        found = list(_automatic_sites(model, modules))
        if not found:
            raise ConfigError(
                "No layer of the model can carry seeds by itself: those are Linear layers, and blocks that begin and "
                "end with one. Name the places: GrowthConfig(layers=[...]), and pass example=batch to esper.wrap."
            )
        return [(site, None) for site in found]
    wanted = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)
    chosen: dict[str, tuple[_Site, int | None]] = {}
    for pattern, num_seeds in wanted.items():
        if not isinstance(pattern, str):
            raise ConfigError(f"layers must name places as strings, not {pattern!r}.")
        if num_seeds is not None and (not isinstance(num_seeds, int) or num_seeds < 1):
            raise ConfigError(f"layers[{pattern!r}] must be a number of seeds of at least 1, not {num_seeds!r}.")
        if ":" in pattern:
            found = [_span(modules, pattern)]
        else:
            names = [""] if pattern == "" else [name for name in modules if name and fnmatch.fnmatch(name, pattern)]
            found = [_site(name, modules[name]) for name in names if pattern == name or _is_host(modules[name])]
        if not found:
            hosts = [name for name, module in modules.items() if name and _is_host(module)]
            raise ConfigError(f"layers: {pattern!r} matches no module that can carry seeds. {closest(pattern, hosts)}")
        for site in found:
            chosen[site.layer_id] = (site, num_seeds)
    if not chosen:
        raise ConfigError("layers names no place. Name some, or leave it at None; max_rounds=0 never grows.")
    return list(chosen.values())


def _automatic_sites(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[_Site]:
    """The whole model and halves where the model is a chain of Linear layers, and every Linear layer."""
    if isinstance(model, nn.Sequential) and _edges(model) is not None:
        yield _site("", model)
    for name, module in modules.items():
        if type(module) is nn.Sequential and _edges(module) is not None:
            prefix = f"{name}." if name else ""
            children = ((step, modules.get(prefix + step)) for step in module._modules)  # None: shared with an earlier
            steps = [step for step, child in children if child is not None and _is_host(child)]
            if len(steps) >= 3:
                middle = steps[len(steps) // 2]
                for first, last in ((steps[0], middle), (middle, steps[-1])):
                    yield _span(modules, f"{prefix}{first}:{prefix}{last}")
        elif isinstance(module, nn.Linear) and _is_host(module):
            yield _site(name, module)


def _is_host(module: nn.Module) -> bool:
    """A Linear layer, or a module whose first and last parametrised layers are Linear."""
    return type(module).forward is not nn.Module.forward and _edges(module) is not None


def _edges(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    leaves = [leaf for leaf in module.modules() if next(leaf.parameters(recurse=False), None) is not None]
    leaves = [leaf for leaf in leaves if not isinstance(leaf, nn.LayerNorm | nn.BatchNorm1d)]
    if leaves and type(leaves[0]) is nn.Linear and type(leaves[-1]) is nn.Linear:
        return leaves[0], leaves[-1]
    return None


def _site(name: str, module: nn.Module) -> _Site:
    if type(module).forward is nn.Module.forward:
        raise ConfigError(f"layers: {name!r} is a {type(module).__name__}, which is never called. Name what it holds.")
    is_layer = isinstance(module, nn.Linear)
    return _Site(name, "layer" if is_layer else "block" if name else "model", (module,))


def _span(modules: dict[str, nn.Module], pattern: str) -> _Site:
    first, _, last = pattern.partition(":")
    for name in (first, last):
        if name not in modules or not name:
            raise ConfigError(f"layers: {pattern!r} names no module {name!r}. {closest(name, filter(None, modules))}")
    container = modules[first.rpartition(".")[0]]
    steps = [child for child in container._modules.values() if child is not None]
    start, end = (next((i for i, child in enumerate(steps) if child is modules[name]), -1) for name in (first, last))
    if type(container).forward is not nn.Sequential.forward or not 0 <= start < end:
        raise ConfigError(
            f"layers: {pattern!r} is no span. Name two steps of one nn.Sequential, the earlier first, e.g. '0:2'."
        )
    return _Site(pattern, "span", tuple(steps[start : end + 1]))


def _ports_from_parameters(site: _Site) -> Ports:
    edges = _edges(nn.ModuleList(site.modules))
    if edges is None:
        raise ConfigError(
            f"Cannot tell the widths of {site.layer_id!r} ({type(site.modules[-1]).__name__}) from its layers. "
            "Pass example=batch to esper.wrap."
        )
    return Ports(edges[0].in_features, edges[1].out_features)


def _measure(model: nn.Module, sites: list[_Site], example: Any) -> dict[str, Ports]:
    """Widths at every site, from one forward pass in eval mode that leaves the global random state as it was."""
    seen: dict[tuple[str, str], Any] = {}
    hooks = []
    for site in sites:

        def enter(_: nn.Module, args: Any, key: str = site.layer_id) -> None:
            seen[key, "in"] = args[0] if args else None

        def leave(_: nn.Module, args: Any, output: Any, key: str = site.layer_id) -> None:
            seen[key, "out"] = output

        hooks.append(site.modules[0].register_forward_pre_hook(enter))
        hooks.append(site.modules[-1].register_forward_hook(leave))
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    ports = {}
    for site in sites:
        x, y = seen.get((site.layer_id, "in")), seen.get((site.layer_id, "out"))
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() >= 2 and x.shape[:-1] == y.shape[:-1]):
            raise ConfigError(
                f"{site.layer_id!r} does not map one tensor [..., inputs] to one tensor [..., outputs] with the same "
                "leading axes, so a graft cannot stand beside it. Name other layers."
            )
        if site.kind == "layer" or x.is_floating_point():
            ports[site.layer_id] = Ports(x.shape[-1], y.shape[-1])
    return ports
