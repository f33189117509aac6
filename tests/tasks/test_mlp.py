"""Perceptrons, and the same ones wider."""

import pytest
from torch import nn

from esper.tasks.mlp import MLPHost, mlp, num_parameters, scaled


def test_layers_alternate_with_relu():
    kinds = [type(layer) for layer in mlp((4, 3, 2, 5))]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_a_factor_of_one_changes_nothing():
    assert scaled((64, 8, 8, 10), 1.0) == [64, 8, 8, 10]


def test_input_output_and_depth_stay():
    assert scaled((64, 8, 8, 10), 3.0) == [64, 24, 24, 10]
    assert scaled((64, 8, 8, 10), 0.01) == [64, 1, 1, 10]


@pytest.mark.parametrize("percent", [175, 190, 205, 250, 333, 395])
def test_a_host_that_grew_by_three_quarters_or_more_is_matched_within_two_percent(percent):
    exact = num_parameters([64, 8 * percent / 100, 8 * percent / 100, 10])
    assert abs(num_parameters(scaled((64, 8, 8, 10), percent / 100)) / exact - 1) <= 0.02


def test_parameters_are_those_of_the_module():
    host = MLPHost((7, 5, 3))
    assert sum(p.numel() for p in host().parameters()) == num_parameters((7, 5, 3))
