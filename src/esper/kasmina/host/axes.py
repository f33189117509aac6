"""Which axis of what a place reads and writes has the channels."""

from collections.abc import Sequence

from esper.contracts.errors import ConfigError
from esper.kasmina.host.edges import Edge, first_and_last, known_ends, outermost
from esper.kasmina.host.stretches import Stretch
from esper.kasmina.host.tracing import Seen


def axes_of(one: Stretch, x: Seen | None, y: Seen, wanted: int | None) -> tuple[int, int]:
    """Channel axes of input and output: as asked for, or as the outermost layers tell, norms among them.

    What is asked for is the output's, and the input's too if that has as many axes.

    Raises:
        ConfigError: if nobody tells the output's.
    """
    (before, behind), (first, last) = outermost(*one.modules), first_and_last(*one.modules) or (None, None)
    ends = known_ends(*one.modules) if first is None else []
    reads = [edge for edge in ends[:1] if x is not None and edge.inputs in (x.shape[1], x.shape[-1])]
    writes = [edge for edge in ends[1:] if edge.outputs in (y.shape[1], y.shape[-1])]
    input_axis = None
    if x is not None:
        input_axis = _axis(x, [(edge, edge.inputs) for edge in (before, first, *reads) if edge])
        input_axis = wanted if wanted and len(x.shape) == len(y.shape) > 2 else input_axis
    alike = input_axis if x is not None and x.shape == y.shape else None
    output_axis = wanted or _axis(y, [(edge, edge.outputs) for edge in (behind, last, *writes) if edge], alike)
    if len(y.shape) == 2:
        output_axis = -1
    if output_axis is None and first is None:
        output_axis = alike or _axis_of_parameters(one, y)
    if output_axis is None:
        name = repr(one.layer_id) if one.layer_id else "The model"
        if not any(True for module in one.modules for _ in module.parameters()):
            kind = type(one.modules[-1]).__name__
            raise ConfigError(f"{name} ({kind}) has no parameters, so it is no place to grow. Name layers or blocks.")
        raise ConfigError(
            f"{name} gave a tensor of shape {tuple(y.shape)} and its layers do not tell where the channels are. Say "
            f"so: GrowthConfig(axis={{{one.layer_id!r}: 1}}), or -1 for the last axis."
        )
    return input_axis or output_axis, output_axis


def _axis(seen: Seen, told: Sequence[tuple[Edge, int]], alike: int | None = None) -> int | None:
    """The channel axis of a tensor; None if nobody tells.

    A layer tells it, unless the tensor was transposed behind it: where its width is the size of the other axis, that is
    the one.

    Args:
        seen: the tensor.
        told: edges, with their widths; the outermost first.
        alike: axis of the place's other end if that has the same shape: it decides where both axes fit.
    """
    shape = seen.shape
    if len(shape) == 2:
        return -1
    for edge, width in told:
        fitting = [axis for axis in (1, -1) if shape[axis] == width]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            is_reshaped = bool(edge.positions) and len(shape) != edge.positions + 2
            return alike or (None if is_reshaped else edge.axis)
    return told[-1][0].axis if told else None


def _axis_of_parameters(one: Stretch, y: Seen) -> int | None:
    """The axis of an output whose size is that of a parameter; where both are, the last one if nothing convolves."""
    shapes = [parameter.shape for module in one.modules for parameter in module.parameters()]
    fitting = [axis for axis in (1, -1) if any(y.shape[axis] in shape for shape in shapes)]
    if len(fitting) == 1:
        return fitting[0]
    return -1 if fitting and all(len(shape) <= 2 for shape in shapes) else None
