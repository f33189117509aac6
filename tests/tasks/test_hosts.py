"""The hosts: shapes, sizes by width factor, and that the transformer does not look ahead."""

import numpy as np
import pytest
import torch

from esper.contracts.errors import ConfigError
from esper.tasks.catalogue import load_task
from esper.tasks.cnn import CNNHost, shape_of
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost

HOSTS = {
    "mlp": (MLPHost((40, 8, 8, 10)), torch.randn(3, 40), (3, 10)),
    "signal": (CNNHost((1, 40), 10), torch.randn(3, 40), (3, 10)),
    "image": (CNNHost((1, 8, 8), 10), torch.randn(3, 64), (3, 10)),
    "colours": (CNNHost((3, 16, 16), 5), torch.randn(3, 3, 16, 16), (3, 5)),
    "tiny image": (CNNHost((1, 2, 2), 5), torch.randn(3, 4), (3, 5)),
    "gpt": (GPTHost(vocabulary=11, context=16), torch.randint(11, (3, 16)), (3, 16, 11)),
}


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", HOSTS)
def test_logits_fit_the_labels(name):
    host, x, shape = HOSTS[name]
    logits = host()(x)
    assert logits.shape == shape
    logits.sum().backward()


@pytest.mark.parametrize("name", ["signal", "image", "colours", "gpt"])
@pytest.mark.parametrize("factor", [0.3, 0.77, 1.0, 1.21, 1.4, 2.3])
def test_parameters_are_counted_and_follow_the_factor_within_two_percent(name, factor):
    host, _, _ = HOSTS[name]
    model, (exact_width, *others) = host(factor), (host.widths if name != "gpt" else (host.width, host.hidden))
    widths = [width * factor for width in (exact_width, *others)]
    exact = host.num_parameters(*widths) if name == "gpt" else host.num_parameters(widths)
    assert abs(_size(model) / exact - 1) <= (0.02 if factor >= 1 else 0.15)
    whole = host.scaled(factor)
    assert _size(model) == (host.num_parameters(*whole) if name == "gpt" else host.num_parameters(whole))


def test_a_factor_of_one_changes_nothing():
    assert CNNHost((1, 40), 10).scaled(1.0) == CNNHost((1, 40), 10).widths
    host = GPTHost(65, 64)
    assert host.scaled(1.0) == (host.width, host.hidden)


def test_the_transformer_does_not_look_ahead():
    torch.manual_seed(0)
    model, tokens = GPTHost(11, 16)(), torch.randint(11, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (tokens[:, 9] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_the_transformer_tells_positions_apart():
    torch.manual_seed(0)
    logits = GPTHost(11, 16)()(torch.full((1, 16), 3))
    assert not torch.allclose(logits[:, 0], logits[:, 5])


def test_shorter_windows_are_taken():
    torch.manual_seed(0)
    model, tokens = GPTHost(11, 16)(), torch.randint(11, (2, 16))
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens)[:, :7])


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model, tokens = GPTHost(11, 16, dropout=0.5)(), torch.randint(11, (2, 16))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        ((40,), (1, 40)),
        ((49,), (1, 49)),
        ((64,), (1, 8, 8)),
        ((784,), (1, 28, 28)),
        ((8, 8), (1, 8, 8)),
        ((3, 5, 7), (3, 5, 7)),
    ],
)
def test_a_cnn_sees_signals_and_images(sample, shape):
    assert shape_of(sample) == shape


def test_samples_of_more_axes_are_no_images():
    with pytest.raises(ConfigError, match=r"shape \(2, 2, 2, 2\).*--host mlp"):
        shape_of((2, 2, 2, 2))


@pytest.mark.parametrize(("data", "parameters"), [("digits", 682), ("mnist1d", 490)])
def test_the_mlp_is_the_host_unless_told_otherwise(data, parameters):
    assert _size(load_task(data, 0).make_host()) == _size(load_task(data, 0, "mlp").make_host()) == parameters


@pytest.mark.parametrize("data", ["digits", "mnist1d"])
def test_a_cnn_takes_features_as_they_are(data):
    task = load_task(data, 0, "cnn")
    assert task.make_host()(task.train.x[:4]).shape == (4, 10)


def test_a_cnn_takes_the_shape_of_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(120, 3, 6, 5)), y=np.arange(120) % 3)
    task = load_task(str(tmp_path / "a.npz"), 0, "cnn")
    assert task.make_host().stem[0].in_channels == 3
    assert task.make_host()(task.train.x[:4]).shape == (4, 3)


def test_cells_of_a_cnn_are_images_again():
    """Row-major, as scikit-learn flattens them."""
    task = load_task("digits", 0, "cnn")
    shaped = task.make_host().shaped(task.train.x[:2])
    assert torch.equal(shaped[1, 0, 3], task.train.x[1, 24:32])
