"""What an exported model has grown, as Python source that needs torch alone."""

import re
from typing import Any

from torch import fx, nn
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from esper.contracts.errors import ConfigError
from esper.kasmina.host.export import GROWN, INPUTS

FUNCTION = '''\
def grow(model):
    """Hang on to a new model what it has grown; the weights are loaded afterwards."""
    {lines}
'''


def source_of(plain: nn.Module) -> tuple[str, str]:
    """Imports, and the classes of what an exported model has grown with a function ``grow(model)`` that attaches them;
    both empty where nothing has grown.

    Args:
        plain: from :func:`esper.export`; nothing of it is changed.

    Raises:
        ConfigError: if a graft is of a class that torch does not bring.
    """
    writer, paths = _Writer(), {module: path for path, module in plain.named_modules()}
    children: list[str] = []
    inputs: list[str] = []
    hooks: list[str] = []
    forwards: list[str] = []
    for path, one in grown_in(plain).items():
        holder, _, name = path.rpartition(".")
        children.append(f"{_found(holder)}.add_module({name!r}, {writer.name_of(one)}())")
    for module, path in paths.items():
        if INPUTS in vars(module):
            writer.imports |= {"import threading", "from collections import UserDict"}
            inputs = inputs or ["inputs = UserDict()", "inputs.thread = threading.get_ident"]
            inputs.append(f"{_found(path)}.{INPUTS} = inputs")
        starts = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, fx.GraphModule)]
        hooks += [f"{_found(path)}.register_forward_pre_hook({writer.name_of(hook)}())" for hook in starts]
        held = {key: hook for key, hook in module._forward_hooks.items() if isinstance(hook, fx.GraphModule)}
        hooks += [
            f"{_found(path)}.register_forward_hook("
            f"{_found(paths[hook]) if hook in paths else f'{writer.name_of(hook)}()'}, prepend=True, "
            f"with_kwargs={key in module._forward_hooks_with_kwargs})"
            for key, hook in reversed(held.items())
        ]
        whole = getattr(vars(module).get("forward"), "__self__", None)
        if isinstance(whole, fx.GraphModule):
            forwards.append(f"{_found(path)}.forward = {writer.name_of(whole, paths)}(model).forward")
    if not children:
        return "", ""
    body = FUNCTION.format(lines="\n    ".join([*children, *inputs, *hooks, *forwards]))
    return "\n".join(sorted(writer.imports)), "\n\n".join([*writer.classes, body])


def grown_in(plain: nn.Module) -> dict[str, fx.GraphModule]:
    """What an exported model has grown, by its dotted name."""
    return {
        path: module
        for path, module in plain.named_modules()
        if isinstance(module, fx.GraphModule) and re.fullmatch(rf"(.*\.)?{GROWN}(_\d+)?", path)
    }


def _found(path: str) -> str:
    return f"model.get_submodule({path!r})" if path else "model"


class _Writer:
    """Collects classes, each once."""

    def __init__(self) -> None:
        self.imports = {"import torch", "from torch import nn"}
        self.classes: list[str] = []
        self._names: dict[str, str] = {}  # of a class, by its body
        self._numbers: dict[str, int] = {}

    def name_of(self, module: nn.Module | None, paths: dict[nn.Module, str] | None = None) -> str:
        """The class of a graph module: with ``paths`` its children are those of the model, else its own.

        Raises:
            ConfigError: if it is none.
        """
        if not isinstance(module, fx.GraphModule):
            raise ConfigError(
                f"A graft is a {type(module).__name__}, which cannot be written as source. Leave out the blueprint's "
                "own to_module, or keep the model by torch.save(esper.export(model), path)."
            )
        lines = ["def __init__(self, model):" if paths else "def __init__(self):", "    super().__init__()"]
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            assert tensor is not None
            dtype = "" if tensor.is_floating_point() else f", dtype={tensor.dtype}"  # else as what is built around it
            empty = f"torch.empty({tuple(tensor.shape)}{dtype})"
            is_parameter = isinstance(tensor, nn.Parameter)
            value = f"register_parameter({name!r}, nn.Parameter({empty}))" if is_parameter else ""
            lines.append(f"    self.{value or f'register_buffer({name!r}, {empty})'}")
        for name, child in module._modules.items():
            assert child is not None
            built = _found(paths[child]) if paths else f"{self.name_of(child)}()"
            lines.append(f"    self.add_module({name!r}, {built})")
        code: Any = module.graph.python_code("self")
        forward = code.src[code.src.index("def forward") :].rstrip()
        used = {name: value for name, value in code.globals.items() if re.search(rf"\b{name}\b", forward)}
        self.imports |= set(_format_import_block(used, sys_importer).splitlines())
        body = "\n".join(f"    {line}" if line.strip() else "" for line in [*lines, "", *forward.splitlines()])
        return self._once(type(module).__name__.removesuffix("Impl"), body)

    def _once(self, kind: str, body: str) -> str:
        if body not in self._names:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            self._names[body] = f"{kind}{self._numbers[kind]}"
            self.classes.append(f"class {self._names[body]}(nn.Module):\n{body}\n")
        return self._names[body]
