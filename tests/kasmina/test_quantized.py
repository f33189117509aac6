"""Dynamic quantisation goes by the exact class of a layer: of a wrapped model it finds none, of an exported one all."""

import pytest
import torch
from torch import nn

from esper import export
from esper.contracts.lifecycle import State
from tests.kasmina.growing import grow, place_of, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::UserWarning:torch")


def quantized(model: nn.Module) -> tuple[nn.Module, int]:
    """It, and how many of its layers are quantised."""
    made = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return made, sum("quantized" in type(module).__module__ for module in made.modules())


@pytest.mark.skipif(not torch.backends.quantized.supported_engines, reason="torch was built without quantisation")
def test_an_exported_model_is_quantised_whole():
    torch.manual_seed(0)
    model = wrapped(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), ["0", "2"]).eval()
    grow(place_of(model, "0"), until=State.FOSSILIZED, hidden=4)
    x = torch.randn(32, 6)
    assert quantized(model)[1] == 0
    made, count = quantized(export(model))
    assert count == 4
    with torch.no_grad():
        exact = model(x)
        assert (made(x) - exact).abs().max() < 0.05 * exact.abs().max()
