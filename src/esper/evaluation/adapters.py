"""Small adapters everywhere from the first step, as a control: does the place matter?

Each is a bottleneck behind one layer or block, whose last factor is zero at the start (Houlsby et al.,
"Parameter-efficient transfer learning for NLP", ICML 2019, section 2.1, there near zero). All of the network trains.
"""

from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting
from esper.evaluation.planted import Planting, planted, sensed_host
from esper.evaluation.row import Row
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import host_parameters
from esper.tamiyo.sizing import ports_at
from esper.tasks.task import Task

KINDS = ("block", "layer")


def adapters(task: Task, train_flops: int, parameters: int, setting: Setting) -> Row:
    """The host with an adapter behind every layer and block, of ``parameters`` together, trained for ``train_flops``.

    The row reports the parameters that it really has: hidden widths are whole numbers.
    """
    return planted(task, everywhere(task, parameters, setting), train_flops, setting)


def everywhere(task: Task, parameters: int, setting: Setting) -> list[Planting]:
    """Adapters behind every layer and block, of nearly equal hidden widths, by which the host comes to ``parameters``.

    A host that is given fewer parameters than the smallest adapters take gets them behind as many places, in the
    order of their modules, as fit.

    Raises:
        ConfigError: if the host has no layer or block.
    """
    model = sensed_host(task, setting)
    behind = BottleneckMLP(reads="chunk")
    ports = {p.layer_id: ports_at(p.report(), "all", behind) for p in places(model) if p.kind in KINDS}
    if not ports:
        raise ConfigError("The host has no layer or block to put an adapter behind.")
    room = parameters - host_parameters(model)
    hidden: dict[str, int] = {}

    def size(layer_id: str, width: int) -> int:
        return BottleneckMLP(reads="chunk", hidden=width).num_parameters(ports[layer_id]) if width else 0

    while True:  # one more unit behind each place in turn, until the nearest size is reached
        narrowest = min(ports, key=lambda layer_id: hidden.get(layer_id, 0))
        width = hidden.get(narrowest, 0)
        more = size(narrowest, width + 1) - size(narrowest, width)
        if more > 2 * room:
            break
        hidden[narrowest], room = width + 1, room - more
    settings = {layer_id: {"reads": "chunk", "hidden": width} for layer_id, width in hidden.items()}
    return [Planting(layer_id, "all", BottleneckMLP.id, settings[layer_id]) for layer_id in settings]
