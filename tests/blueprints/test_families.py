"""Each family computes what it says: against torch's own modules, or the formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint

SIGNAL, IMAGE, TOKENS = (3, 9), (3, 6, 5), (3, 8)


def graft(name: str, ports: Ports, positions: tuple[int, ...], **settings):
    """Random parameters, an input and the delta, in float64."""
    blueprint = make_blueprint(name, settings)
    generator = torch.Generator().manual_seed(0)
    params = {
        key: torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in blueprint.shapes(ports).items()
    }
    x = torch.randn(*positions, ports.inputs, generator=generator, dtype=torch.float64)
    return params, x, blueprint.delta(params, x)


def test_affine_scales_and_shifts_each_channel():
    params, x, delta = graft("affine", Ports(4, 4), (6,))
    torch.testing.assert_close(
        delta, torch.stack([x[:, c] * params["scale"][c] + params["shift"][c] for c in range(4)], 1)
    )


def test_low_rank_is_a_matrix_of_that_rank():
    _, x, delta = graft("low_rank", Ports(5, 6), (20,), rank=2)
    matrix = torch.linalg.lstsq(x, delta).solution
    torch.testing.assert_close(x @ matrix, delta)
    assert torch.linalg.matrix_rank(matrix) == 2


def test_glu_gates_one_half_by_the_other():
    params, x, delta = graft("glu", Ports(5, 6), (7,), hidden=3)
    z = x @ params["w1"].T + params["b1"]
    hidden = torch.stack([z[:, i] * torch.sigmoid(z[:, i]) * z[:, 3 + i] for i in range(3)], 1)
    torch.testing.assert_close(delta, hidden @ params["w2"].T + params["b2"])


def test_norm_affine_is_layer_norm():
    params, x, delta = graft("norm_affine", Ports(4, 4), (6, 2))
    norm = torch.nn.LayerNorm(4).double()
    norm.load_state_dict({"weight": params["scale"], "bias": params["shift"]})
    torch.testing.assert_close(delta, norm(x))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("layout", "positions"), [("signal", SIGNAL), ("image", IMAGE)])
def test_conv_bottleneck_is_two_convolutions_that_keep_the_positions(layout, positions, kernel):
    params, x, delta = graft("conv_bottleneck", Ports(4, 6, layout), positions, hidden=5, kernel=kernel)
    convolution = {"signal": torch.nn.Conv1d, "image": torch.nn.Conv2d}[layout]
    first, last = convolution(4, 5, kernel, padding="same").double(), convolution(5, 6, 1).double()
    first.load_state_dict({"weight": params["w1"], "bias": params["b1"]})
    last.load_state_dict({"weight": params["w2"].view_as(last.weight), "bias": params["b2"]})
    torch.testing.assert_close(delta.movedim(-1, 1), last(F.gelu(first(x.movedim(-1, 1)))))


@pytest.mark.parametrize(("layout", "positions"), [("signal", SIGNAL), ("image", IMAGE)])
def test_depthwise_conv_is_a_conv_bottleneck_of_each_channel(layout, positions):
    params, x, delta = graft("depthwise_conv", Ports(4, 4, layout), positions, kernels=2)
    alone = make_blueprint("conv_bottleneck", {"hidden": 2})
    for c in range(4):
        own = slice(2 * c, 2 * c + 2)
        named = {
            "w1": params["weight"][own],
            "b1": params["bias"][own],
            "w2": params["scale"][None, own],
            "b2": params["shift"][c : c + 1],
        }
        torch.testing.assert_close(delta[..., c : c + 1], alone.delta(named, x[..., c : c + 1]))


@pytest.mark.parametrize(("layout", "positions"), [("signal", SIGNAL), ("image", IMAGE)])
def test_squeeze_excite_multiplies_by_one_gate_per_sample_and_channel(layout, positions):
    params, x, delta = graft("squeeze_excite", Ports(4, 4, layout), positions, hidden=3)
    for sample, change in zip(x, delta, strict=True):
        mean = sample.reshape(-1, 4).mean(0)
        z = params["w2"] @ F.silu(params["w1"] @ mean + params["b1"]) + params["b2"]
        torch.testing.assert_close(sample + change, sample * 2 * torch.sigmoid(2 * z))


@pytest.mark.parametrize("kernel", [1, 2, 4, 11])
def test_sliding_conv_is_a_hidden_layer_over_the_last_tokens(kernel):
    params, x, delta = graft("sliding_conv", Ports(4, 6, "tokens"), TOKENS, hidden=5, kernel=kernel)
    for t in range(8):
        past = [x[:, t - back] if t >= back else torch.zeros_like(x[:, 0]) for back in reversed(range(kernel))]
        hidden = F.gelu(torch.einsum("hck,bck->bh", params["w1"], torch.stack(past, -1)) + params["b1"])
        torch.testing.assert_close(delta[:, t], hidden @ params["w2"].T + params["b2"])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
def test_mini_attention_is_scaled_dot_product_attention(heads, causal):
    ports = Ports(5, 6, "tokens")
    params, x, delta = graft("mini_attention", ports, TOKENS, heads=heads, head_width=2, causal=causal)
    width = 2 * heads
    q, k, v = (
        (x @ params["w1"][start : start + width].T).view(3, 8, heads, 2).transpose(1, 2)
        for start in (0, width, 2 * width)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(3, 8, width)
    torch.testing.assert_close(delta, mixed @ params["w2"].T + params["b2"])


def test_attention_costs_more_with_every_token_and_squeeze_excite_less():
    def cost(name: str, positions: int) -> int:
        return make_blueprint(name, {}).multiply_adds(Ports(8, 8, "tokens", positions))

    assert cost("mini_attention", 101) - cost("mini_attention", 100) == 2 * 2 * 8
    assert cost("squeeze_excite", 10) == math.ceil(cost("squeeze_excite", 1) / 10)
    assert cost("glu", 1) == cost("glu", 100)
