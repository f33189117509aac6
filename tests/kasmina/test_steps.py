"""Which places are blocks in a row."""

import torch
from torch import nn

import esper
from esper.kasmina.host.anchoring import places
from esper.tasks.cnn import cnn
from esper.tasks.gpt import GPT


def steps(model: nn.Module, example: torch.Tensor) -> set[str]:
    wrapped = esper.wrap(model, esper.GrowthConfig(), example=example)
    assert {one.layer_id for one in places(wrapped) if one.site.is_step} == {
        one.layer_id for one in places(wrapped) if one.report().is_step
    }
    return {one.layer_id for one in places(wrapped) if one.site.is_step}


def test_the_blocks_of_a_transformer_are_and_the_row_and_what_they_hold_are_not():
    model = GPT(vocabulary=11, context=8, width=4, hidden=6, blocks=3, heads=2)
    assert steps(model, torch.randint(11, (2, 8))) == {"blocks.0", "blocks.1", "blocks.2"}


def test_residual_stages_are_beside_the_stem():
    """The stem and the stages are a row too, but the stages hold one themselves."""
    assert steps(cnn((1, 12), (3, 3, 4), (1, 2), 2), torch.randn(2, 12)) == {"stem", "stages.0", "stages.1"}


def test_layers_in_a_row_are_not():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert steps(model, torch.randn(2, 4)) == set()


def test_one_block_alone_is_no_row():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 2))
    assert steps(model, torch.randn(2, 4)) == set()
