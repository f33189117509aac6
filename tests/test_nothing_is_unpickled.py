"""No path of Esper that reads a file unpickles it, or runs what is in it; told by the syntax of its sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src" / "esper"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
LOADS = {"load", "loads", "Unpickler", "open"}
BUILTINS = {"eval", "exec"}


def names(node: ast.AST) -> str:
    """Of what is called, as it is written."""
    return ast.unparse(node)


def dangers(source: str) -> Iterator[str]:
    """Calls that may run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"{node.lineno}: from {node.module}"
        if isinstance(node, ast.ClassDef) and any(names(base).endswith("Unpickler") for base in node.bases):
            yield f"{node.lineno}: class {node.name}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = names(node.func), {one.arg: one.value for one in node.keywords}
        first, _, last = called.rpartition(".")
        if first in MODULES and last in LOADS and not _is_made_here(node):
            yield f"{node.lineno}: {called}"
        if called in ("torch.load", "torch.jit.load", "torch.package.PackageImporter") or called in BUILTINS:
            yield f"{node.lineno}: {called}"
        if last == "load" and first in ("np", "numpy"):
            allowed = keywords.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                yield f"{node.lineno}: {called} without allow_pickle=False"
        if first == "yaml" and last in ("load", "unsafe_load", "full_load", "load_all", "unsafe_load_all"):
            yield f"{node.lineno}: {called}"


def _is_made_here(call: ast.Call) -> bool:
    """Whether the bytes come from this very process."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Call) and names(call.args[0].func) == "pickle.dumps"


def test_nothing_is_unpickled():
    sources = sorted(SOURCES.rglob("*.py"))
    assert len(sources) > 300
    assert [f"{path}:{danger}" for path in sources for danger in dangers(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "pickle.loads(data)",
        "pickle.Unpickler(file).load()",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "from pickle import loads",
        "class Reader(pickle.Unpickler): ...",
        "joblib.load(path)",
        "eval(text)",
    ],
)
def test_it_would_be_seen(line):
    assert list(dangers(line))


def test_a_copy_within_the_process_is_none():
    assert not list(dangers("pickle.loads(pickle.dumps(event, 5))"))
