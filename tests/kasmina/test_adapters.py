"""Where input and output of a place differ in shape: what a graft reads, and that it does no harm at birth."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import esper
from esper import ConfigError, GrowthConfig
from esper.contracts.lifecycle import State
from esper.kasmina.geometry import Geometry, patch_cells, patch_side
from tests.kasmina.growing import grow, place_of
from tests.kasmina.zoo import ChannelsLast, Merging, PatchEmbedding

sizes = st.integers(1, 5)


class Mean(nn.Module):
    """Over the tokens."""

    def forward(self, x):
        return x.mean(1)


def patch_embedding(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    return PatchEmbedding(a, 13, 1 + c), torch.randn(3, a, (1 + c) * 2, (1 + c) * (1 + b))


def channels_last_stem(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(a, 11, 2, 2), ChannelsLast(), nn.LayerNorm(11))
    return nn.Sequential(*layers), torch.randn(3, a, 2 * b, 2 * c)


def merging(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    return Merging(a, 4 + a), torch.randn(3, 2 * b, 2 * c, a)


def strided(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv1d(a, 6, 3, 2, padding=1), nn.ReLU(), nn.Conv1d(6, b, 1)), torch.randn(3, a, 1 + c)


def widened(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(a, 6, 1), nn.ConvTranspose2d(6, b, 2, 2)), torch.randn(3, a, c, 1 + c)


def pooled_tokens(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(a, 6), Mean(), nn.Linear(6, b)), torch.randn(3, 1 + c, a)


def pooled_image(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(a, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, b))
    return nn.Sequential(*layers), torch.randn(3, a, 1 + c, 2 + c)


def flattened(a: int, b: int, c: int) -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(3, a, 5 * b, 7 * c)
    return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 6), nn.ReLU(), nn.Linear(6, 4)), x


SHAPES = {
    one.__name__: one
    for one in (
        *(patch_embedding, channels_last_stem, merging, strided, widened, pooled_tokens, pooled_image),
        flattened,
    )
}
ADAPTERS = {
    "patch_embedding": ("patches",),
    "merging": ("pool", "same"),
    "channels_last_stem": ("pool",),
    "pooled_tokens": ("flatten",),
    "pooled_image": ("pool",),
    "flattened": ("flatten",),
}


def seeded(shape: str, *numbers: int) -> tuple[nn.Module, torch.Tensor, nn.Module]:
    """A host with a seed around the whole of it, an input, and the bare host."""
    torch.manual_seed(sum(numbers))
    bare, x = SHAPES[shape](*numbers)
    torch.manual_seed(sum(numbers))
    model, _ = SHAPES[shape](*numbers)
    return esper.wrap(model, GrowthConfig(layers=[""]), example=x), x, bare


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=5, derandomize=True)
@given(sizes, sizes, sizes)
def test_at_birth_a_graft_changes_no_bit_and_learns_from_there(shape, a, b, c):
    model, x, bare = seeded(shape, a, b, c)
    place = place_of(model, "")
    assert place.site.geometry.adapter in ADAPTERS.get(shape, ("pool", "same", "spread", "flatten"))
    assert place.ports.inputs > 0
    grow(place, "all", State.GRAFTING, scale=None, alpha=1.0)
    expected = bare(x)
    assert torch.equal(model(x), expected)
    target, optimizer = expected.detach() + 1.0, torch.optim.SGD([place.arena.slots], lr=0.05)
    before = F.mse_loss(model(x), target)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()
    assert F.mse_loss(model(x), target) < before


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=3, derandomize=True)
@given(sizes, sizes, sizes)
def test_what_grew_there_is_exported(shape, a, b, c):
    model, x, bare = seeded(shape, a, b, c)
    grow(place_of(model, ""), "all", State.FOSSILIZED)
    plain = esper.export(model.eval())
    torch.testing.assert_close(plain(x), model(x))
    assert not torch.allclose(plain(x), bare.eval()(x))


@given(sizes, st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_a_token_reads_its_own_patch_and_no_other(channels, side, rows, columns, data):
    """As many features as the patch has values, where that is few enough."""
    cells = patch_cells(channels, side)
    assert patch_side((rows * side, columns * side), rows * columns) == side
    geometry = Geometry(1, -1, adapter="patches", cells=cells, cell=side // cells)
    x, y = torch.zeros(2, channels, rows * side, columns * side), torch.zeros(2, rows * columns, 3)
    assert geometry.read(x, y).shape == (2, rows * columns, channels * cells**2)
    row, column = data.draw(st.integers(0, rows * side - 1)), data.draw(st.integers(0, columns * side - 1))
    x[1, channels - 1, row, column] = 1.0
    seen = geometry.read(x, y).abs().sum(-1)
    assert seen.nonzero().tolist() == [[1, row // side * columns + column // side]]


def test_large_patches_are_averaged_within():
    assert patch_cells(1, 16) == 16
    assert patch_cells(3, 16) == 8
    assert patch_cells(3, 14) == 7
    assert patch_cells(500, 4) == 1


@pytest.mark.parametrize(("lengths", "tokens"), [((8, 8), 5), ((8, 12), 1), ((7, 7), 4), ((8, 8), 65), ((2, 2), 0)])
def test_tokens_that_are_no_patches_are_told(lengths, tokens):
    """A class token among them, say; then a graft reads its own chunk only."""
    assert patch_side(lengths, tokens) is None


def test_a_host_that_flattens_its_input_is_read_as_a_whole_with_and_without_an_example():
    x = torch.randn(3, 1, 28, 28)
    for example in (x, None):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 3))
        place = place_of(esper.wrap(model, example=example), "")
        assert place.ports.inputs == 784
    geometry = Geometry(1, -1, adapter="flatten", grid=(28, 28))
    assert torch.equal(geometry.read(x, torch.zeros(3, 3)), x.flatten(1))


def test_a_convolution_behind_which_channels_move_last_is_chunked_over_its_channels():
    """And not over the rows of its image, whose axis its own channels have."""
    x = torch.randn(2, 3, 8, 8)
    for example in (x, None):
        stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), ChannelsLast(), nn.LayerNorm(12))
        model = nn.Sequential(stem, nn.Linear(12, 5))
        place = place_of(esper.wrap(model, GrowthConfig(layers=["0"]), example=example), "0")
        assert (place.ports.outputs, place.site.geometry.output_axis) == (12, -1)


class Inverted(nn.Module):
    """A block whose last layer works with the channels last, and which then puts them back."""

    def __init__(self):
        super().__init__()
        self.spatial, self.up, self.down = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        y = self.spatial(x).permute(0, 2, 3, 1)
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [4, 6])
def test_a_block_that_moves_its_channels_there_and_back_is_chunked_over_them(side):
    """Also where the image is as wide as it has channels: it gives what it gets."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Inverted())
    place = place_of(esper.wrap(model, example=torch.randn(2, 3, side, side)), "1")
    assert (place.ports.inputs, place.ports.outputs, place.ports.layout) == (6, 6, "image")
    assert place.site.geometry.output_axis == 1


def test_where_nobody_can_tell_the_axis_it_must_be_named():
    """As many tokens as channels."""
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(ConfigError, match=r"'0' gave a tensor of shape \(2, 16, 16\).*axis=\{'0': 1\}"):
        esper.wrap(nn.Sequential(PatchEmbedding(3, 16, 4)), GrowthConfig(layers=["0"]), example=x)
    config = GrowthConfig(layers=["0"], axis={"0": -1})
    place = place_of(esper.wrap(nn.Sequential(PatchEmbedding(3, 16, 4)), config, example=x), "0")
    assert place.site.geometry.adapter == "patches"
    assert place.ports.inputs == 3 * 16


@pytest.mark.parametrize("positions", [0, 1, 2])
def test_a_graft_works_at_the_positions_of_the_input_and_its_delta_is_averaged_to_the_outputs(positions):
    """A detail between the output's positions is seen: the mean of the input is the same with and without it."""
    host = {
        0: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
        1: nn.Conv1d(2, 3, 4, stride=4),
        2: nn.Conv2d(2, 3, 4, stride=4),
    }[positions]
    flat = torch.zeros(1, 2, *[8] * max(1, positions))
    detailed = flat.clone()
    detailed[..., 0], detailed[..., 1] = 1.0, -1.0
    model = esper.wrap(host, GrowthConfig(layers=[""]), example=flat)
    grow(place_of(model, ""), "all", State.GRAFTING, blueprint="conv_bottleneck", alpha=1.0)
    place = place_of(model, "")
    seen = []
    for x in (flat, detailed):
        grown = model(x)
        place.state.alpha.zero_()
        seen.append(grown - model(x))
        place.state.alpha.fill_(1.0)
    assert not torch.allclose(seen[0], seen[1])
    assert place.ports.layout == ("signal" if positions < 2 else "image")
    assert place.ports.positions == 8 ** max(1, positions)


def test_the_mean_over_positions_is_what_a_pooled_head_adds():
    host = nn.Sequential(nn.Conv1d(2, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(5, 2, 7)
    model = esper.wrap(host, GrowthConfig(layers=[""]), example=x)
    place = place_of(model, "")
    grow(place, "all", State.GRAFTING, blueprint="conv_bottleneck", alpha=1.0)
    (graft,) = place.arena.live
    delta = graft.blueprint.delta(graft.unflatten(place.arena.params_of(graft)), x.movedim(1, -1)).mean(1)
    grown = model(x)
    place.state.alpha.zero_()
    torch.testing.assert_close(grown - model(x), delta)
