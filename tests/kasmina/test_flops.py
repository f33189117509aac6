"""Every kernel that a host may use is counted, as torch counts it, and computes what it does without being counted."""

import threading

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


class Products(nn.Module):
    """What torch differentiates by other formulas while a mode of its dispatcher is on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.last = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = F.mish(F.silu(self.gate(x)) * self.up(x))
        return self.last(y) + (1 + y).prod(-1, keepdim=True)


HOSTS = {
    "products": Products,
    "linear": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "convolution": Convolution,
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_counted_as_torch_counts_them_and_compute_the_same_bytes(name, mode, monkeypatch):
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

    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # torch does not see into it
    with sdpa_kernel(SDPBackend.MATH):  # the other one torch leaves out
        with FlopCounterMode(display=False) as torchs:
            work()
        bare = work()
        with FlopCounter() as counter:
            counted = work()
    assert counter.flops == torchs.get_total_flops()
    assert all(map(torch.equal, bare, counted))


def test_gradients_of_each_sample_are_counted_too():
    """By what is computed for all samples together."""
    layer = nn.Linear(4, 2)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    with FlopCounter() as counter:
        torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(3, 4))
    assert counter.flops == 2 * 2 * 3 * 4 * 2  # the layer, and the gradient of its weights


def test_counters_within_each_other_both_count():
    x = torch.randn(4, 8)
    with FlopCounter() as outer:
        x @ x.T
        with FlopCounter() as inner:
            x @ x.T
    x @ x.T
    assert (outer.flops, inner.flops) == (2 * 256, 256)


def test_a_counter_counts_nothing_of_other_threads():
    x, seen = torch.randn(4, 8), []

    def other() -> None:
        with FlopCounter() as counter:
            x @ x.T
        seen.append(counter.flops)

    with FlopCounter() as mine:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert (mine.flops, seen) == (0, [256])


def test_an_error_inside_leaves_no_counter_on():
    x = torch.randn(4, 8)
    with pytest.raises(RuntimeError), FlopCounter() as counter:
        x @ x
    x @ x.T
    assert counter.flops == 0
