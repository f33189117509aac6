"""Genomes are data: what is none is refused with a reason, what is one is the same however it is written."""

import json
import random
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.reports import POSITION_AXES
from esper.karn.drawing import draw, pruned
from esper.karn.genome import KIND, MOST_BYTES, MOST_NODES, Genome, GenomeError, Node, make_node, read_genome
from esper.karn.operations import HEADS, OPERATIONS

LAYOUTS = sorted(POSITION_AXES)
GATED = {
    "kind": KIND,
    "nodes": [
        {"operation": "linear", "reads": [0], "width": 2},
        {"operation": "linear", "reads": [0], "width": 2},
        {"operation": "activation", "reads": [1], "of": "silu"},
        {"operation": "product", "reads": [2, 3]},
    ],
    "head": {"operation": "linear", "reads": [4]},
}


def changed(*path: Any, to: Any) -> str:
    """The text of the gated one with one thing in it replaced, or taken out."""
    whole = json.loads(json.dumps(GATED))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return json.dumps(whole)


def test_a_genome_is_read_as_it_was_written():
    genome = read_genome(json.dumps(GATED))
    assert read_genome(genome.to_json()) == genome
    assert [node.operation for node in genome.nodes] == ["linear", "linear", "activation", "product"]
    assert genome.layouts == frozenset(LAYOUTS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no JSON"),
        ("[" * 20_000, "is no JSON"),
        ("3", "says that it is 3"),
        (" " * (MOST_BYTES + 1), "has at most"),
        (changed("kind", to="esper.genome/2"), "this Esper reads 'esper.genome/1'"),
        (changed("nodes", to=None), "has no 'nodes'"),
        (changed("nodes", to={}), "must be a list"),
        (changed("nodes", to=[{}] * (MOST_NODES + 1)), f"may have {MOST_NODES}"),
        (changed("nodes", 0, to=7), "Node 1 is 7, and must be an object"),
        (changed("nodes", 0, "operation", to="liner"), "there is no operation 'liner'. Did you mean 'linear'"),
        (changed("nodes", 0, "operation", to=["linear"]), "there is no operation"),
        (changed("nodes", 0, "width", to=None), "Node 1 has no 'width'"),
        (changed("nodes", 0, "width", to=3), "width of 'linear' is 3, and may be one of 2, 4, 8"),
        (changed("nodes", 0, "width", to=True), "width of 'linear' is True"),
        (changed("nodes", 0, "code", to="import os"), "'code', which means nothing"),
        (changed("nodes", 2, "reads", to=[3]), "Node 3 reads value 3; there are 0 to 2 before it, no cycles"),
        (changed("nodes", 2, "reads", to=[-1]), "reads value -1"),
        (changed("nodes", 2, "reads", to=[True]), "must read a list of numbers"),
        (changed("nodes", 2, "reads", to="1"), "must read a list of numbers"),
        (changed("nodes", 2, "reads", to=[1, 2]), "'activation' reads 1 values, not 2"),
        (changed("nodes", 1, "width", to=4), "'product' cannot read 4 times the hidden width, of degree 1 and 2 times"),
        (changed("nodes", 2, "of", to="square"), "'product' cannot read"),
        (changed("head", "operation", to="product"), "The head: there is no operation 'product'"),
        (changed("head", "operation", to="scale"), "The head: 'scale' cannot read 2 times the hidden width"),
        (changed("head", "reads", to=[3]), "Node 4 is read by none"),
    ],
)
def test_what_is_no_genome_is_refused_with_a_reason(text, why):
    with pytest.raises(GenomeError) as told:
        read_genome(text)
    assert why in str(told.value)
    assert len(str(told.value)) < 400


def test_the_page_shows_a_genome_and_names_all_that_there_is():
    page = (Path(__file__).parents[2] / "docs" / "karn.md").read_text()
    (shown,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    assert json.loads(shown) == GATED
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == {*OPERATIONS, *HEADS}
    for operation in OPERATIONS.values():
        for name, values in operation.settings.items():
            told = [row for row in rows if f"`{name}`" in row]
            assert told
            if bool not in map(type, values):
                assert any(all(str(value) in row for value in values) for row in told)


def test_operations_must_work_together_somewhere():
    nodes = make_node("attention", 0, heads=2), make_node("depthwise", 1, kernel=3, causal=False)
    with pytest.raises(GenomeError, match="work together on no layout"):
        Genome(nodes, make_node("linear", 2))


def test_the_order_of_nodes_and_of_what_commutes_is_nothing():
    """Negative control: what a node computes is not."""
    genome = read_genome(json.dumps(GATED))
    first, second, activation, product = genome.nodes
    turned = Genome(
        (second, first, Node("activation", (2,), activation.settings), Node("product", (3, 1))), genome.head
    )
    assert turned != genome
    assert turned.digest == genome.digest
    other = Genome((first, second, make_node("activation", 1, of="tanh"), product), genome.head)
    assert other.digest != genome.digest


def test_order_is_nothing_also_where_values_differ_by_who_reads_them_alone():
    """Two maps of the input meet, and one of them goes on to meet what came out: which one stands first is nothing."""

    def of(*meeting: int) -> Genome:
        maps = make_node("linear", 0, width=2), make_node("linear", 0, width=2)
        later = make_node("activation", 1, of="tanh"), make_node("sum", 3, 4)
        return Genome((*maps, make_node("product", *meeting), *later), make_node("linear", 5))

    assert of(1, 2).digest == of(2, 1).digest
    assert of(1, 2).canonical.digest == of(1, 2).digest


def test_what_has_parameters_of_its_own_is_not_what_shares_them():
    shared = Genome((make_node("linear", 0, width=2), make_node("product", 1, 1)), make_node("linear", 2))
    apart = Genome(
        (make_node("linear", 0, width=2), make_node("linear", 0, width=2), make_node("product", 1, 2)),
        make_node("linear", 3),
    )
    assert shared.digest != apart.digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_drawn_is_valid_and_works_where_it_was_drawn_for(layout):
    found = [draw(random.Random(seed), layout) for seed in range(200)]
    assert all(layout in one.layouts for one in found)
    assert all(read_genome(one.to_json()) == one for one in found)
    assert all(read_genome(one.canonical.to_json()).digest == one.digest for one in found)
    used = {node.operation for one in found for node in one.nodes}
    fit = {name for name, one in OPERATIONS.items() if name != "attention" or layout == "tokens"}
    fit -= set() if layout != "features" else {"depthwise", "shift", "pool"}
    assert used == fit
    assert {one.head.operation for one in found} == set(HEADS)


def test_what_the_head_does_not_need_is_left_out():
    nodes = make_node("norm", 0), make_node("scale", 0), make_node("activation", 2, of="tanh")
    assert pruned(nodes, make_node("linear", 3)).nodes == (
        make_node("scale", 0),
        make_node("activation", 1, of="tanh"),
    )


def test_genomes_need_no_torch():
    code = (
        "import sys; from esper.karn.genome import read_genome; read_genome(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(GATED)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def fuzzed(chance: random.Random) -> str:
    """A drawn genome with something wrong in it, more or less."""
    text = draw(chance, chance.choice(LAYOUTS)).to_json()
    if chance.random() < 0.5:
        at = chance.randrange(len(text))
        return text[:at] + "".join(chance.choices(string.printable, k=chance.randint(0, 4))) + text[at + 1 :]
    whole = json.loads(text)
    part: Any = chance.choice([whole, whole["head"], *whole["nodes"]])
    key = chance.choice([*part, "__class__", "width"])
    part[key] = chance.choice([None, -1, 0, 1, 2, 1e308, "", "__import__('os')", [], [0], [99], {}, True, [[0]]])
    return json.dumps(whole)


class Watch:
    """Whether anything is opened, imported, compiled or run; Python's own audit events tell."""

    FORBIDDEN = ("open", "import", "compile", "exec", "os.", "subprocess.", "socket.", "pickle.", "ctypes.")

    def __init__(self) -> None:
        self.is_on, self.seen = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Any) -> None:
        if self.is_on and event.startswith(self.FORBIDDEN):
            self.seen.append(event)


WATCH = Watch()


def fuzz(seeds: range) -> tuple[int, int]:
    """How many were read, and how many refused; anything but a genome and a typed error is raised."""
    read = refused = 0
    for seed in seeds:
        text = fuzzed(random.Random(seed))
        WATCH.is_on = True
        try:
            read_genome(text)
            read += 1
        except GenomeError:
            refused += 1
        finally:
            WATCH.is_on = False
    return read, refused


def test_no_file_runs_anything_or_raises_anything_else():
    """Negative control: what opens a file is seen."""
    WATCH.seen.clear()
    read, refused = fuzz(range(2000))
    assert read > 5
    assert refused > 1000
    assert WATCH.seen == []
    WATCH.is_on = True
    try:
        open(__file__).close()
    finally:
        WATCH.is_on = False
    assert WATCH.seen == ["open"]


@pytest.mark.long
def test_a_hundred_thousand_files_run_nothing_and_raise_nothing_else():
    WATCH.seen.clear()
    read, refused = fuzz(range(2000, 102_000))
    print(f"{read:,} were genomes, {refused:,} refused")
    assert WATCH.seen == []


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(text):
    with pytest.raises(GenomeError):
        read_genome(text)
