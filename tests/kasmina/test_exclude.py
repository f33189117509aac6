"""Places that a user forbids carry no seeds, whoever chose them."""

import pytest
import torch
from torch import nn

import esper
from esper import ConfigError, GrowthConfig
from esper.kasmina.host.anchoring import places
from esper.tasks.gpt import GPTHost
from tests.kasmina.growing import mlp


def ids(model: nn.Module) -> list[str]:
    return [place.layer_id for place in places(model)]


def chosen(*, exclude, model=None, **config) -> list[str]:
    model = mlp(6, 8, 8, 4) if model is None else model
    return ids(esper.wrap(model, GrowthConfig(exclude=exclude, **config)))


def test_without_it_all_of_them_carry_seeds():
    """The negative control of what follows."""
    assert sorted(chosen(exclude=())) == ["", "0", "0:2", "2", "2:4", "4"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["4"], ["", "0", "0:2", "2", "2:4"]),
        ([""], ["0", "0:2", "2", "2:4", "4"]),
        (["0:2"], ["", "0", "2", "2:4", "4"]),
        (["*:*"], ["", "0", "2", "4"]),
        (["?", ""], ["0:2", "2:4"]),
    ],
)
def test_what_matches_carries_none_and_what_contains_it_stays(exclude, left):
    assert sorted(chosen(exclude=exclude)) == left


@pytest.mark.parametrize("layers", [["0", "2", ""], {"0": 2, "2": 3, "": 1}, ["?", ""]])
def test_it_goes_before_what_layers_names(layers):
    assert "2" not in chosen(layers=layers, exclude=["2"])
    assert {"0", ""} <= set(chosen(layers=layers, exclude=["2"]))


def test_patterns_reach_into_blocks():
    model = GPTHost(vocabulary=11, context=8, width=8, hidden=8, blocks=2)()
    left = ids(esper.wrap(model, GrowthConfig(exclude=["*.attention.*", "head"]), example=torch.randint(11, (2, 8))))
    assert "blocks.0" in left
    assert "blocks.1.mlp" in left
    assert not [name for name in left if "attention" in name or name == "head"]


@pytest.mark.parametrize(
    ("exclude", "says"),
    [
        (["0:3"], r"exclude: '0:3' matches no place. Did you mean '0:[24]'\? Valid: \"\", 0, 0:2"),
        (["1"], r"exclude: '1' matches no place. What lies within a module is named by '1\*'"),
        (["enc*"], r"exclude: 'enc\*' matches no place"),
        (["*"], r"exclude forbids every place that could carry seeds: .*max_rounds=0"),
    ],
)
def test_a_pattern_that_matches_nothing_or_everything_is_refused(exclude, says):
    model = mlp(6, 8, 8, 4)
    with pytest.raises(ConfigError, match=says):
        esper.wrap(model, GrowthConfig(exclude=exclude))
    assert ids(model) == []


@pytest.mark.parametrize("exclude", ["head", [3], None])
def test_it_must_be_a_list_of_patterns(exclude):
    with pytest.raises(ConfigError, match="exclude must be a list of patterns"):
        GrowthConfig(exclude=exclude)
