"""A model is on one GPU and the current device is another one."""

import pytest
import torch
from torch import nn

import esper
from esper.evaluation.bench.planted import plant
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.slot_optimizer import SlotOptimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


def trained(device: str, is_compiled: bool) -> dict[str, torch.Tensor]:
    """State of a model after some steps there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to(device)
    esper.wrap(model, esper.GrowthConfig(layers={"0": 8, "2": 4}))
    for place in places(model):
        plant(place, [0, 2], "bottleneck_mlp", {"hidden": 8, "reads": "chunk"})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    SlotOptimizer(places(model), optimizer, lambda: 1e-2, 0.01)
    forward = torch.compile(model) if is_compiled else model
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(1)).to(device)
    for _ in range(50):
        forward(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("is_compiled", [False, True])
def test_it_is_the_same_on_both(is_compiled):
    assert torch.cuda.current_device() == 0
    there, here = trained("cuda:1", is_compiled), trained("cuda:0", is_compiled)
    assert there.keys() == here.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=0, atol=0, msg=name, equal_nan=True)
    assert all(value.isfinite().all() for value in here.values() if value.is_floating_point())
