"""The model as a tree, with places and grafts."""

import pytest

from esper.observability.anatomy import anatomy
from esper.observability.labels import graft_label, place_label
from tests.observability.events import arm_ended, candidate, ended, move, record


def module(name: str, type_: str = "Linear", parameters: int = 5):
    return {"name": name, "type": type_, "parameters": parameters}


def place(layer_id: str, kind: str, covers: list[str]):
    return {"layer_id": layer_id, "kind": kind, "covers": covers, "inputs": 4, "outputs": 3, "seeds": 2, "layout": "x"}


MODEL = {
    "event": "model",
    "step": 0,
    "planned_steps": 100,
    "type": "Sequential",
    "parameters": 40,
    "modules": [module("a", "Block"), module("a.0"), module("a.1"), module("b")],
    "places": [place("", "model", []), place("a.0:a.1", "span", ["a.0", "a.1"]), place("b", "layer", ["b"])],
}


def names(nodes) -> list:
    return [(node["name"], names(node["children"])) for node in nodes]


def test_modules_hang_under_their_containers():
    assert names(anatomy(record(MODEL))["modules"]) == [("a", [("a.0", []), ("a.1", [])]), ("b", [])]


def test_a_module_whose_container_is_not_listed_hangs_on_the_nearest_that_is():
    told = anatomy(record({**MODEL, "modules": [module("a"), module("a.x.0"), module("c.y.1")]}))
    assert names(told["modules"]) == [("a", [("a.x.0", [])]), ("c.y.1", [])]


def test_a_host_without_submodules_is_one_box():
    (box,) = anatomy(record({**MODEL, "type": "Linear", "modules": []}))["modules"]
    assert box == {"name": "Linear", "type": "Linear", "parameters": 40, "children": []}


def test_places_tell_what_they_cover():
    places = anatomy(record(MODEL))["places"]
    assert [(one["label"], one["kind"], one["covers"]) for one in places] == [
        ("the whole model", "model", []),
        ("a.0:a.1", "span", ["a.0", "a.1"]),
        ("b", "layer", ["b"]),
    ]


def test_a_colony_tells_its_pieces():
    pieces = [{"module": "a.0", "role": "linear"}, {"module": "b", "role": "beside"}]
    told = anatomy(record({**MODEL, "places": [place("*", "colony", ["a.0", "b"]) | {"pieces": pieces}]}))
    assert [(one["covers"], one["pieces"]) for one in told["places"]] == [(["a.0", "b"], pieces)]


def test_grafts_tell_outcome_size_and_gain():
    begun = {"event": "round_begun", "step": 10, "round": 1, "end_step": 30, "candidates": [candidate(1), candidate(2)]}
    told = anatomy(
        record(
            MODEL,
            *(move(number, "DORMANT", "GERMINATED", 10) for number in (1, 2)),
            begun,
            arm_ended(1, 20, passed=True),
            ended(1, 10, 80, "FOSSILIZED"),
        )
    )
    kept, waiting = told["grafts"]
    assert (kept["outcome"], kept["parameters"], kept["settings"], kept["gain"]["mean"]) == (
        *("FOSSILIZED", 99, {"hidden": 4}, 0.5),
    )
    assert (waiting["outcome"], waiting["state"], waiting["parameters"], waiting["settings"]) == (
        *(None, "GERMINATED", None, {"hidden": 4}),
    )


def test_a_log_that_does_not_tell_of_the_model_gives_no_picture():
    assert anatomy(record(move(1, "DORMANT", "GERMINATED", 10))) is None


def test_the_grown_size_is_that_of_the_result():
    result = {"rows": {"grown": {"parameters": 77}}, "lifecycles": []}
    assert anatomy(record(MODEL, result=result))["grown_parameters"] == 77
    assert anatomy(record(MODEL))["grown_parameters"] is None


@pytest.mark.parametrize(
    ("layer_id", "label"),
    [
        ("", "the whole model"),
        ("*", "all channels (*)"),
        ("blocks.*.mlp", "blocks.*.mlp"),
        ("0:2", "0:2"),
        ("encoder.0.linear", "encoder.0.linear"),
    ],
)
def test_places_have_one_label_everywhere(layer_id, label):
    assert place_label(layer_id) == label
    assert graft_label(layer_id, "all", "glu") == f"{label}: glu"
    assert graft_label(layer_id, 3, None) == f"{label}, seed 3"
