"""Graph modules of an export, written as code on proxies."""

from typing import Any

from torch import fx, nn


def placeholders(graph: fx.Graph, *names: str) -> list[Any]:
    """Arguments of a graph, to be computed with."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    return [fx.Proxy(graph.placeholder(name), tracer) for name in names]


def graph_module(root: nn.Module, graph: fx.Graph, output: Any, is_training: bool) -> fx.GraphModule:
    """The module that a graph is the forward of.

    Args:
        root: holds the modules that the graph calls.
        graph: without an output yet.
        output: what it gives.
        is_training: its mode.
    """
    graph.output(output.node)
    module = fx.GraphModule(root, graph, "Grown")
    module.training = is_training
    return module
