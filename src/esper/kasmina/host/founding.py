"""Which colonies a model is offered, and their founding.

A colony that widens layers is tried first, on a copy of the model: it must export to layers of the new widths that
compute the same. Host code that has a width written into it fails there, and not after training.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from esper.blueprints.widen import Widen
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.contracts.reports import WHOLE
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.strategies import FixedRamp
from esper.kasmina.host.anchoring import anchor_of, is_espers
from esper.kasmina.host.channel_classes import ChannelClass
from esper.kasmina.host.colonies import colonies, starred, within
from esper.kasmina.host.comparing import FAULTS, gap_between, run, told
from esper.kasmina.host.depth import block_copies
from esper.kasmina.host.export import copied, plain
from esper.kasmina.host.measuring import classes_of
from esper.kasmina.host.stretches import Stretch
from esper.kasmina.places.place import Place
from esper.kasmina.places.site import Site


def colonies_of(
    model: nn.Module, found: Sequence[tuple[Stretch, Place]], config: GrowthConfig, example: Any
) -> tuple[list[Site], dict[str, str]]:
    """The colonies of a bare model that is shown by an example, as the configuration allows them.

    Args:
        model: the host.
        found: its places, and where they lie.
        config: how it will be wrapped.
        example: an input of the model; None finds none.

    Returns:
        The colonies, and why others are not offered, by their name.

    Raises:
        ConfigError: if a pattern of the configuration matches none.
    """
    if example is None or config.colonies == []:
        return [], {}
    names = [name for name, _ in model.named_modules()]
    if config.layers is None:
        allowed = {name for name in names if not _matches(name, config.exclude)}
    else:
        roots = {name for one, _ in found for name in one.names}
        allowed = {name for name in names if any(_lies_in(name, root) for root in roots)}
    missing: dict[str, str] = {}
    try:
        classes = classes_of(model, example)
    except FAULTS as error:
        classes, missing[WHOLE] = [], f"the model fails while its channels are followed ({told(error)})"
    lone = [place.site for _, place in found]
    sites = colonies(model, classes, lone, allowed, block_copies(model, lone, example))
    wanted = ["*"] if config.colonies is None else config.colonies
    sites = [one for one in sites if not _matches(one.layer_id, config.exclude)]
    missing |= _without_colony([one for one in classes if allowed.issuperset(one.modules)], sites)
    missing = {name: why for name, why in missing.items() if not _matches(name, config.exclude)}
    known = [site.layer_id for site in sites]
    for pattern in wanted if config.colonies else []:
        if not fnmatch.filter(known, pattern):
            why = next((f" {name!r} is not offered: {missing[name]}." for name in fnmatch.filter(missing, pattern)), "")
            raise ConfigError(
                f"colonies: {pattern!r} matches no colony of the model.{why or ' ' + closest(pattern, known)}"
            )
    faults = {one.layer_id: _fault(model, one, config, example) for one in sites if _matches(one.layer_id, wanted)}
    missing |= {name: fault for name, fault in faults.items() if fault is not None}
    return [one for one in sites if faults.get(one.layer_id, "") is None], missing


def found(model: nn.Module, site: Site, config: GrowthConfig) -> Place:
    """Found a colony."""
    own = dict(model.named_parameters())
    covered = {parameter for name in site.modules for parameter in model.get_submodule(name).parameters()}
    host = [parameter for name, parameter in own.items() if parameter in covered and not is_espers(name)]
    size = sum(parameter.numel() for parameter in host)
    place = Place(site, 1, size, next(iter(host), next(iter(own.values()))), config)
    anchor_of(model).found(place)
    for piece in site.pieces:
        if piece.role != "table":
            module = model.get_submodule(piece.module)
            anchor_of(module).join(place, piece)
            if piece.role == "copy":
                place.hosts[piece.module] = module
    return place


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _lies_in(name: str, root: str) -> bool:
    return root in ("", name) or name.startswith(f"{root}.")


def _without_colony(classes: Sequence[ChannelClass], sites: Sequence[Site]) -> dict[str, str]:
    """Why repeated classes of channels, and those that run through several blocks, have none; a line each."""
    offered, missing = {site.layer_id for site in sites}, dict[str, str]()
    names = [starred(within(one.modules)) for one in classes]
    for name, one in zip(names, classes, strict=True):
        if one.fault is None:
            continue
        is_repeated = "*" in name and names.count(name) > 1
        is_through = "*" not in name and len({*map(starred, one.modules)}) < len(set(one.modules))
        if is_through or (is_repeated and name in offered and WHOLE not in offered):
            name = WHOLE if WHOLE not in offered else one.writers[0]
        elif not is_repeated or name in offered:
            continue
        missing.setdefault(name, f"its channels cannot become more, since {one.fault}")
    return missing


def _fault(model: nn.Module, site: Site, config: GrowthConfig, example: Any) -> str | None:
    """Why a colony cannot be exported; None if it can."""
    if not any(map(Widen().meets, site.pieces)):
        return None
    try:
        tried = copied(model)
        _fossilize(found(tried, site, config))
        wanted = run(tried, example)
    except FAULTS as error:
        return f"the model fails with it ({told(error)})"
    try:
        gap = gap_between(wanted, run(plain(tried), example))
    except FAULTS as error:
        return f"the model fails once its layers are wider ({told(error)})"
    return f"once its layers are wider the model computes something else, by {gap:.2g} of its output" if gap else None


def _fossilize(colony: Place) -> None:
    """One with the fewest channels, none of which is silent, as a newborn's would be."""
    blueprint = Widen(percent=1)
    graft = Graft(1, (0, 1), (0, colony.ports.outputs), colony.ports_of(blueprint), blueprint, FixedRamp())
    born = graft.birth(colony.seed)
    noise = torch.randn(born.shape, generator=torch.Generator().manual_seed(colony.seed))
    colony.arena.grafts[1] = graft
    colony.arena.plant([graft], [torch.where(born == 0, noise * born.std(), born)])
    colony.arena.fossilize(1)
