"""The model card says what the network is, how it came about, and what is not known of it."""

import pytest
import yaml

from esper.observability.card import card, code
from tests.observability import directories
from tests.observability.directories import gain, lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed", layer_id="0:2")
BETTER = gain((0.12, 0.08, 0.16), (0.05, 0.01, 0.09))
GIVEN = {"files": {"model.pt2": "the graph"}, "usage": "import torch\nuse(it)", "version": "9.8.7"}


def _card(found, model=None):
    return card(found, model, weights={"host.0.weight": (8, 64)}, **GIVEN)


def _grown(**fields):
    return result([FOSSIL, lifecycle(2)], host_on=row(0.30, 0.90), static=row(0.2, 0.94, 1290), **fields)


def test_it_says_what_grew_on_what_data_from_what_host():
    said = _card(_grown(test_set={"samples": 397, "digest": "a1"}), directories.model(type="Thin|Net", parameters=700))
    assert "# A grown network\n\nTrained by Esper 9.8.7 on `digits`; a part of it grew while it trained." in said
    assert r"| host | `mlp`, of type `Thin\|Net`, with 700 parameters |" in said
    assert "| network | 1,292 parameters |" in said
    assert "| data | `digits`, 397 test samples |" in said
    assert "| `bottleneck_mlp` (`hidden 8`) | `0:2` | 610 | 25 | 75 |" in said
    assert said.count("| 610 |") == 1  # what was refused is no part of it


def test_without_the_log_the_host_is_what_did_not_grow():
    assert "| host | `mlp` of 682 parameters |" in _card(_grown())


def test_it_says_what_that_was_worth_and_cost():
    said = _card(_grown(gains={"host_on": BETTER, "static": None}))
    assert "and that paid: 5.0 points more accuracy than the host trained on. Against the host" in said
    assert "the network has 5.0 points more accuracy (1.0 to 9.0 more)" in said
    assert "Its training took 4.0 MFLOPs and 1 min 20 s; 25% of the FLOPs went into trying what could grow." in said


def test_it_says_what_was_not_measured():
    said = _card(result([FOSSIL]))
    assert "It was not compared with the host trained on: `left out by --no-controls`." in said
    assert "intervals" not in said


def test_its_limits_are_those_of_the_run():
    assert "The intervals are over test samples of the same source only" in _card(_grown(gains={"host_on": BETTER}))
    assert "It was tested on samples of the same source only" in _card(_grown())


def test_a_network_in_which_nothing_grew_is_not_called_grown():
    said = _card(result([lifecycle(1)], grown=row(0.3, 0.9, 682)))
    assert "# A trained network" in said
    assert "No graft is part of it: it is the host, trained." in said
    assert "A grown network" not in said


def test_it_tells_how_to_load_it():
    said = _card(_grown())
    assert "| `model.pt2` | the graph |" in said
    assert "```python\nimport torch\nuse(it)\n```" in said
    assert "| `host.0.weight` | [8, 64] |" in said


def test_its_head_is_yaml():
    _, head, _ = _card(_grown()).split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "pytorch", "tags": ["esper", "grown-while-training"]}


@pytest.mark.parametrize(
    ("name", "shown"), [("a_b", "`a_b`"), ("a`b", "`a'b`"), ("a|b", r"`a\|b`"), ("a\nb", "`a b`"), ("", '`""`')]
)
def test_a_name_cannot_break_the_page(name, shown):
    assert code(name) == shown


def test_a_result_of_braces_is_taken_as_it_is():
    assert "`{usage}`" in _card(_grown() | {"task": "{usage}"})


def test_it_says_which_trained_weights_it_began_with():
    said = _card(_grown(weights="/data/w.pt"))
    assert "| began with | trained weights, from `/data/w.pt` |" in said
    assert "The static network is new: it got the FLOPs of this run" in said
    assert "Its training from those weights on took 4.0 MFLOPs" in said
    assert "began with" not in _card(_grown(weights=None))


def test_a_quantity_has_its_units():
    grown = row(0.2, 0.8) | {"test_further": {"RMSE": 54.321}}
    said = _card(result([], grown=grown, metric="R2", target="price"))
    assert "| test R2 | 80.0% |" in said
    assert "| test RMSE | 54.32, in units of `price` |" in said
