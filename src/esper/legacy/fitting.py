"""What a graft of an old layer connects, and which blueprints can."""

from torch import nn
from torch.nn.modules.conv import _ConvNd

from esper.blueprints.blueprint import Blueprint, Ports
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Layout

_CONV_LAYOUTS: dict[int, Layout] = {1: "signal", 2: "image"}


def ports_of(base_layer: nn.Module) -> tuple[Ports, int]:
    """What a graft beside a layer connects, and the axis of its channels.

    Raises:
        ConfigError: if the layer does not tell.
    """
    known = [module for module in base_layer.modules() if isinstance(module, nn.Linear | _ConvNd)]
    if not known or isinstance(known[0], nn.Linear) != isinstance(known[-1], nn.Linear):
        raise ConfigError(
            f"LegacyKasminaLayer takes linear layers, convolutions, and modules that begin and end with one kind of "
            f"them, not this {type(base_layer).__name__}."
        )
    first, last = known[0], known[-1]
    if isinstance(first, nn.Linear) and isinstance(last, nn.Linear):
        return Ports(first.in_features, last.out_features), -1
    assert isinstance(first, _ConvNd)
    assert isinstance(last, _ConvNd)
    return Ports(first.in_channels, last.out_channels, _CONV_LAYOUTS.get(len(last.kernel_size), "features")), 1


def graft_ports(blueprint: Blueprint, ports: Ports) -> Ports:
    """What a graft connects at a layer: the one seed's chunk is all that the layer writes."""
    return ports._replace(inputs=ports.outputs) if blueprint.reads == "chunk" else ports


def check_fits(blueprint: Blueprint, ports: Ports) -> None:
    """Refuse a blueprint that an old layer cannot grow.

    Raises:
        ConfigError: saying why.
    """
    misfit = blueprint.misfit(graft_ports(blueprint, ports))
    if not blueprint.starts_at_zero:
        misfit = "it does not start as the identity"
    if misfit is not None:
        raise ConfigError(f"Blueprint {blueprint.id!r} cannot grow in an old layer: {misfit}.")
