"""Every kernel that a host may use is counted, as torch counts it, and computes what it does without being counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.flops import FlopCounter


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_on_the_cpu_is_counted_like_its_matrix_products(is_causal):
    """Two products forward; in backward those that give the four gradients, and one to recompute the weights."""
    query, key, value = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 16 * 16 * 8
    with FlopCounter() as counter:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    assert counter.flops == 2 * product
    with FlopCounter() as counter:
        output.sum().backward()
    assert counter.flops == 5 * product


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.back = nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2)

    def forward(self, x):
        grown = F.interpolate(self.norm(self.conv(x.view(-1, 4, 4, 8))), scale_factor=2.0, mode="bilinear")
        return F.gelu(self.back(grown))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.GRU(16, 8, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.layers(x)[0]


HOSTS = {
    "linear": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "convolution": Convolution,
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_counted_as_torch_counts_them_and_compute_the_same_bytes(name, mode):
    torch.manual_seed(0)
    host, x = HOSTS[name]().train(mode == "training"), torch.randn(4, 8, 16)

    def work() -> list[torch.Tensor]:
        torch.manual_seed(1)
        host.zero_grad()
        if mode == "training":
            output = host(x)
            output.square().mean().backward()
            return [output.detach(), *(parameter.grad.clone() for parameter in host.parameters())]
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            return [host(x).clone()]

    with sdpa_kernel(SDPBackend.MATH):  # the other one torch leaves out
        with FlopCounterMode(display=False) as torchs:
            work()
        bare = work()
        with FlopCounter() as counter:
            counted = work()
    assert counter.flops == torchs.get_total_flops()
    assert all(map(torch.equal, bare, counted))


def test_gradients_of_each_sample_are_counted_too():
    """No hooks are left on what ``torch.func`` wraps."""
    layer = nn.Linear(4, 2)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    with FlopCounter() as counter:
        torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(3, 4))
    assert counter.flops > 0
