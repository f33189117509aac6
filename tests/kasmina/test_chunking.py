import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.errors import ConfigError
from esper.kasmina.seeds.chunking import chunk_bounds


@st.composite
def layers(draw):
    channels = draw(st.integers(1, 5000))
    return channels, draw(st.integers(1, channels))


@given(layers())
def test_chunks_cover_every_channel_once_and_differ_by_at_most_one(layer):
    channels, seeds = layer
    bounds = chunk_bounds(channels, seeds)
    sizes = bounds.diff()
    assert bounds.dtype == torch.int64
    assert bounds.shape == (seeds + 1,)
    assert (int(bounds[0]), int(bounds[-1])) == (0, channels)
    assert int(sizes.min()) >= 1
    assert int(sizes.max() - sizes.min()) <= 1


@pytest.mark.parametrize(("channels", "seeds"), [(4, 5), (4, 0), (4, -1), (0, 1), (4, 1.5)])
def test_more_seeds_than_channels_or_none_are_refused_with_both_numbers(channels, seeds):
    with pytest.raises(ConfigError, match=f"{channels} channels .* not {seeds}"):
        chunk_bounds(channels, seeds)
