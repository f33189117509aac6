"""The hosts: shapes, sizes by width factor, and that the transformer does not look ahead."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import width_factor
from esper.tasks.catalogue import load_task
from esper.tasks.cnn import CNNHost, image_of
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import deeper
from esper.tasks.text_mlp import TextMLPHost
from tests.tasks.texts import write_text

HOSTS = {
    "mlp": (MLPHost((40, 8, 8, 10)), torch.randn(3, 40), (3, 10)),
    "signal": (CNNHost((1, 40), 10), torch.randn(3, 40), (3, 10)),
    "image": (CNNHost((1, 8, 8), 10), torch.randn(3, 64), (3, 10)),
    "colours": (CNNHost((3, 16, 16), 5), torch.randn(3, 3, 16, 16), (3, 5)),
    "tiny image": (CNNHost((1, 2, 2), 5), torch.randn(3, 4), (3, 5)),
    "gpt": (GPTHost(vocabulary=11, context=16), torch.randint(11, (3, 16)), (3, 16, 11)),
    "text mlp": (TextMLPHost(vocabulary=11), torch.randint(11, (3, 16)), (3, 16, 11)),
}
DEEPER = HOSTS | {f"deeper {name}": (host.deeper(), *shapes) for name, (host, *shapes) in HOSTS.items()}
FACTORS = [0.3, 1.0, 1.21, 2.3]


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _counted(host, widths) -> float:
    """What the host says that it has, with these widths."""
    return host.num_parameters(*widths) if isinstance(host, GPTHost | TextMLPHost) else host.num_parameters(widths)


@pytest.mark.parametrize("name", DEEPER)
def test_logits_fit_the_labels(name):
    host, x, shape = DEEPER[name]
    logits = host()(x)
    assert logits.shape == shape
    logits.sum().backward()


@pytest.mark.parametrize("name", [name for name in DEEPER if "tiny" not in name and name.split()[-1] != "mlp"])
@pytest.mark.parametrize("factor", FACTORS)
def test_parameters_are_counted_and_follow_the_factor_within_two_percent(name, factor):
    host, _, _ = DEEPER[name]
    exact_widths = (host.width, host.hidden) if "gpt" in name else host.widths
    exact = _counted(host, [width * factor for width in exact_widths])
    size = _size(host(factor))
    assert abs(size / exact - 1) <= (0.02 if factor >= 1 else 0.15)
    assert size == _counted(host, host.scaled(factor))


@pytest.mark.parametrize("name", ["text mlp", "deeper text mlp"])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_perceptron_of_text_follows_the_factor_too(name, factor):
    host, _, _ = DEEPER[name]
    exact = host.num_parameters(host.features * factor, [width * factor for width in host.hidden])
    size = _size(host(factor))
    assert abs(size / exact - 1) <= 0.02
    assert size == host.num_parameters(*host.scaled(factor))


@pytest.mark.parametrize("name", HOSTS)
def test_a_deeper_host_has_one_more_block_and_the_widths_of_the_old_one(name):
    host, _, _ = HOSTS[name]
    old, new = host(), host.deeper()()
    shapes = [tuple(parameter.shape) for parameter in old.parameters()]
    for parameter in new.parameters():
        if tuple(parameter.shape) in shapes:
            shapes.remove(tuple(parameter.shape))
    assert not shapes  # nothing of the old one is missing or narrower
    assert _depth(new) == _depth(old) + {"mlp": 1, "text mlp": 1, "gpt": 4}.get(name, 2)


def _depth(model: torch.nn.Module) -> int:
    """Layers that mix channels, those of shortcuts aside."""
    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    return sum(isinstance(module, layers) for name, module in model.named_modules() if "shortcut" not in name)


@pytest.mark.parametrize(
    ("data", "host", "parameters"),
    [("digits", "mlp", 900), ("digits", "cnn", 1500), ("mnist1d", "mlp", 4000), ("mnist1d", "cnn", 900)],
)
def test_a_deeper_task_is_found_at_any_size_within_two_percent(data, host, parameters):
    task = deeper(load_task(data, 0, host))
    assert abs(_size(task.make_host(width_factor(task, parameters))) / parameters - 1) <= 0.02


@pytest.mark.parametrize("host", ["gpt", "mlp"])
@pytest.mark.parametrize("ratio", [1.3, 2.0])
def test_hosts_of_text_are_found_at_any_size_within_two_percent(host, ratio, tmp_path):
    plain = load_task(f"text:{write_text(tmp_path)}", 0, host)
    parameters = ratio * _size(plain.make_host())
    for task in (plain, deeper(plain)):
        assert abs(_size(task.make_host(width_factor(task, parameters))) / parameters - 1) <= 0.02


def test_a_factory_that_knows_no_deeper_host_is_told():
    task = replace(load_task("digits", 0), make_host=lambda width_factor=1.0: torch.nn.Linear(64, 10))
    with pytest.raises(ConfigError, match=r"The host of digits has no deeper version.*deeper\(\)"):
        deeper(task)


def test_a_factor_of_one_changes_nothing():
    assert CNNHost((1, 40), 10).scaled(1.0) == CNNHost((1, 40), 10).widths
    host = GPTHost(65, 64)
    assert host.scaled(1.0) == (host.width, host.hidden)
    perceptron = TextMLPHost(65)
    assert perceptron.scaled(1.0) == (perceptron.features, perceptron.hidden)


@pytest.mark.parametrize("host", [GPTHost(11, 16), TextMLPHost(11)], ids=["gpt", "text mlp"])
def test_what_reads_text_does_not_look_ahead(host):
    torch.manual_seed(0)
    model, tokens = host(), torch.randint(11, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (tokens[:, 9] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_perceptron_of_text_sees_its_window_and_no_more():
    torch.manual_seed(0)
    model, tokens = TextMLPHost(11, window=5)(), torch.randint(11, (2, 16))
    changed = tokens.clone()
    changed[:, 6] = (tokens[:, 6] + 1) % 11
    differs = (model(tokens) != model(changed)).any(-1).all(0)
    assert differs.tolist() == [6 <= position < 11 for position in range(16)]


def test_before_the_first_token_stands_one_of_its_own():
    """A window that begins with so many of them sees what a longer one sees behind the start."""
    torch.manual_seed(0)
    model, tokens = TextMLPHost(11, window=5)(), torch.randint(11, (2, 6))
    padded = torch.cat([torch.full((2, 4), 11), tokens], dim=1)
    torch.testing.assert_close(model(padded)[:, 4:], model(tokens))
    model(tokens[:, :1]).sum().backward()
    assert model.embedding.vectors.weight.grad[11].any()


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
        ((5, 7, 3), (3, 5, 7)),
        ((16, 16, 3), (3, 16, 16)),
        ((28, 28, 1), (1, 28, 28)),
        ((8, 5, 5), (8, 5, 5)),
    ],
)
def test_a_cnn_sees_signals_and_images(sample, shape):
    assert image_of(sample)[0] == shape


@pytest.mark.parametrize("sample", [(3, 16, 3), (16, 16, 8), (6, 5, 7)])
def test_where_the_channels_are_is_asked_about_if_the_shape_does_not_tell(sample):
    with pytest.raises(ConfigError, match=r"Say --layout first or --layout last"):
        image_of(sample)
    first, second, third = sample
    assert image_of(sample, "first") == (sample, "first")
    assert image_of(sample, "last") == ((third, first, second), "last")


def test_a_layout_is_refused_where_there_are_no_channels():
    with pytest.raises(ConfigError, match=r"--layout last: .* shape \(40,\), without an axis of channels"):
        image_of((40,), "last")
    with pytest.raises(ConfigError, match="--layout first tells --host cnn"):
        load_task("digits", 0, "mlp", layout="first")


def test_channels_that_come_last_are_seen_as_channels(tmp_path):
    x = np.random.default_rng(0).normal(size=(120, 6, 5, 3))
    np.savez(tmp_path / "last.npz", x=x, y=np.arange(120) % 3)
    np.savez(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2), y=np.arange(120) % 3)
    last, first = (load_task(str(tmp_path / f"{name}.npz"), 0, "cnn") for name in ("last", "first"))
    assert last.told[-1] == "images of 6 x 5 in 3 channels, which come last"
    outputs = []
    for task in (last, first):
        torch.manual_seed(0)
        outputs.append(task.make_host().eval()(task.train.x))
    torch.testing.assert_close(*outputs)


def test_samples_of_more_axes_are_no_images():
    with pytest.raises(ConfigError, match=r"shape \(2, 2, 2, 2\).*--host mlp"):
        image_of((2, 2, 2, 2))


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
