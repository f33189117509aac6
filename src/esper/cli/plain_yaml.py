"""YAML in which every value means what it looks like, and no key stands twice.

PyYAML reads YAML 1.1, to which ``010`` is 8, ``1:30`` is 90 and ``0x10`` is 16, and of a key that stands twice it takes
the last.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from esper.contracts.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
"""How numbers of a kind may be written."""
_OTHERS = {"str": "", "null": "", "merge": "", "bool": "true false yes no on off"}
"""What else an option may be, with the words for it if not all are."""


def load(text: str, where: str) -> Any:
    """The value of a document.

    Args:
        text: YAML.
        where: how to call the document in messages.

    Raises:
        ConfigError: if a number is not written plainly, or a key stands twice in one mapping.
        yaml.YAMLError: if it is not YAML, or of types that are not plain.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return None
    for name, node in _walk(root):
        if isinstance(node, MappingNode):
            _check_keys(node, name, where)
        elif isinstance(node, ScalarNode):
            _check_scalar(node, name, where)
    return yaml.safe_load(text)


def _walk(root: Node) -> Iterator[tuple[str, Node]]:
    """All nodes with their names, as ``growth.keep_looks``; each once, even where an alias leads back."""
    waiting, seen = [("", root)], set()
    while waiting:
        name, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield name, node
        if isinstance(node, SequenceNode):
            waiting += [(name, inner) for inner in reversed(node.value)]
        elif isinstance(node, MappingNode):
            for key, inner in reversed(node.value):
                waiting += [(_inside(name, key), inner), (name, key)]


def _inside(name: str, key: Node) -> str:
    word = key.value if isinstance(key, ScalarNode) else "?"
    return f"{name}.{word}" if name else word


def _check_keys(node: MappingNode, name: str, where: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, ScalarNode):
            line, before = _line(key), lines.get((key.tag, key.value))
            if before is not None:
                raise ConfigError(
                    f"{where}: {_inside(name, key)} stands twice, in lines {before} and {line}. Delete one of them."
                )
            lines[key.tag, key.value] = line


def _check_scalar(node: ScalarNode, name: str, where: str) -> None:
    kind, written = node.tag.removeprefix(_TAG), node.value
    told = f"{where}, line {_line(node)}: {name} {written} is"
    if kind in _NUMBERS:
        if not _NUMBERS[kind].fullmatch(written):
            read = yaml.safe_load(written)
            raise ConfigError(
                f"{told} {read} to YAML. Write {read} if that is meant, '{written}' in quotes if it is text, or else "
                "the number in plain decimal digits."
            )
    elif kind not in _OTHERS or (_OTHERS[kind] and written.lower() not in _OTHERS[kind].split()):
        raise ConfigError(f"{told} a {kind} to YAML, which no option takes. Write it in quotes if it is text.")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
