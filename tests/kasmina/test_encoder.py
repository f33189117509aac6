"""``nn.TransformerEncoder`` with padding: nested tensors in eval mode, until something grows in its layers."""

import pytest
import torch
from torch import nn

from esper import ConfigError, GrowthConfig, export, unwrap, wrap
from esper.contracts.lifecycle import State
from tests.kasmina.growing import grow, place_of

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def padded_encoder():
    """As torch builds it: nested tensors in eval mode where padding is masked; and an input with its mask."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    return encoder, torch.randn(3, 5, 8), torch.arange(5)[None] >= torch.tensor([5, 2, 3])[:, None]


def test_an_encoder_with_padding_computes_as_before_while_nothing_grows():
    """To the bit, zeros at padded positions among it: torch's own path. Grown around the encoder it does so still."""
    encoder, x, pad = padded_encoder()
    with torch.no_grad():
        before = encoder.eval()(x, src_key_padding_mask=pad)
        model = wrap(encoder, GrowthConfig(layers=["", "layers.?", "layers.0.linear1"]), example=(x, None, pad))
        assert torch.equal(model(x, src_key_padding_mask=pad), before)
        assert not before[pad].any()
        grow(place_of(model, ""), hidden=3, alpha=0.0)
        assert torch.equal(model(x, src_key_padding_mask=pad), before)


@pytest.mark.parametrize("name", ["layers.0", "layers.1", "layers.0.linear1", "layers.1.linear2", "layers.0.self_attn"])
def test_a_graft_in_an_encoder_with_padding_acts_in_eval_mode_too(name):
    encoder, x, pad = padded_encoder()
    model = wrap(encoder, GrowthConfig(layers=[name]), example=(x, None, pad))
    with torch.no_grad():
        before = model.eval()(x, src_key_padding_mask=pad)
        grow(place_of(model, name), until=State.FOSSILIZED, hidden=3)
        in_eval = model(x, src_key_padding_mask=pad)[~pad]
        in_training = model.train()(x, src_key_padding_mask=pad)[~pad]
        exported = export(model).eval()(x, src_key_padding_mask=pad)[~pad]
    assert (in_eval - before[~pad]).abs().max() > 1e-3
    torch.testing.assert_close(in_eval, in_training)
    torch.testing.assert_close(in_eval, exported)


def test_an_encoder_is_itself_again_once_its_seeds_are_gone():
    encoder, x, pad = padded_encoder()
    unwrap(wrap(encoder, GrowthConfig(layers=["layers.0"]), example=(x, None, pad)))
    assert type(encoder) is nn.TransformerEncoder
    assert vars(encoder)["use_nested_tensor"] is True


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_whose_seeds_sleep_compiles_in_one_graph(training):
    encoder, x, pad = padded_encoder()
    model = wrap(encoder, GrowthConfig(layers=["layers.0"]), example=(x, None, pad)).train(training)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, src_key_padding_mask=pad)[~pad], model(x, src_key_padding_mask=pad)[~pad])


def test_a_nested_tensor_of_the_callers_own_is_refused_where_something_grows():
    model = wrap(nn.Sequential(nn.Linear(4, 4)), GrowthConfig(layers=["0"])).eval()
    batch = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    with torch.no_grad():
        assert model(batch).is_nested
        grow(place_of(model, "0"), hidden=3)
        with pytest.raises(ConfigError, match=r"'0' returned a nested tensor.* Pad the batch to a plain tensor"):
            model(batch)
