"""What a run tells of a GPU."""

import pytest
import torch

from esper.runtime.record import gpu
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_memory_of_the_device_is_told_as_torch_knows_it():
    heard = []
    config = growing(layers=["0"])

    def loss(model, batch):
        return toy.loss(model, tuple(tensor.cuda() for tensor in batch))

    def evaluate(model):
        model.cpu()
        found = toy.evaluate(model)
        model.cuda()
        return found

    recipe = Recipe(config, policy=Script({}), model=lambda: toy.host().cuda())
    trial = recipe.build(loss=loss, evaluate=evaluate, on_event=heard.append)
    trial.train(1)
    (line,) = [line for line in heard if line["event"] == "vitals"]
    assert 0 < line["device_memory_bytes"] <= line["device_memory_peak_bytes"] <= torch.cuda.max_memory_allocated()


def test_a_busy_device_is_told_as_busy():
    pytest.importorskip("pynvml")
    device, matrix = torch.device("cuda", 0), torch.rand(4096, 4096, device="cuda")
    found = []
    for _ in range(50):
        for _ in range(20):
            matrix = matrix @ matrix
        torch.cuda.synchronize()
        found.append(gpu.utilisation(device))
    assert max(found) > 0.5
    assert all(0 <= one <= 1 for one in found)
