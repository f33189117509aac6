"""What a built-in host is told of its size, and what it cannot be."""

import pytest

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import width_factor
from esper.tasks.catalogue import load_task
from esper.tasks.gpt import GPTHost
from tests.tasks.texts import write_text


@pytest.fixture
def file(tmp_path):
    return f"text:{write_text(tmp_path)}"


def _size(host) -> int:
    return sum(parameter.numel() for parameter in host.parameters())


def test_a_transformer_takes_width_blocks_heads_and_context(file):
    task = load_task(file, 0, "gpt", host_settings={"width": 16, "blocks": 2, "heads": 4, "context": 24})
    assert task.make_host == GPTHost(task.num_classes, context=24, width=16, hidden=64, blocks=2, heads=4)
    assert task.shape == task.train.x.shape[1:] == (24,)


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [({"width": 8}, 32), ({"width": 8, "hidden": 9}, 9), ({"hidden": 9}, 9), ({"blocks": 1}, 24)],
)
def test_its_perceptrons_are_four_times_a_given_width_unless_told(settings, hidden, file):
    assert load_task(file, 0, "gpt", host_settings=settings).make_host.hidden == hidden


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({"hidden": (32, 16)}, (64, 32, 16, 10)),
        ({"hidden": 32}, (64, 32, 32, 10)),
        ({"hidden": 32, "depth": 1}, (64, 32, 10)),
        ({"depth": 3}, (64, 8, 8, 8, 10)),
        ({"hidden": (32, 16), "depth": 2}, (64, 32, 16, 10)),
    ],
)
def test_a_perceptron_takes_widths_or_a_width_and_a_depth(settings, widths):
    assert load_task("digits", 0, "mlp", host_settings=settings).make_host.widths == widths


def test_a_perceptron_on_text_takes_what_it_sees_too(file):
    settings = {"window": 4, "features": 5, "hidden": 6, "depth": 3, "context": 20}
    made = load_task(file, 0, "mlp", host_settings=settings).make_host
    assert (made.window, made.features, made.hidden) == (4, 5, (6, 6, 6))


def test_a_cnn_takes_widths_and_strides():
    made = load_task("digits", 0, "cnn", host_settings={"widths": (6, 8, 10), "strides": (2, 1)}).make_host
    assert (made.widths, made.strides) == ((6, 8, 10), (2, 1))
    assert load_task("digits", 0, "cnn", host_settings={"widths": (6, 8), "strides": 2}).make_host.strides == (2,)


@pytest.mark.parametrize(
    ("data", "host", "settings"),
    [
        ("digits", "mlp", {"hidden": (20, 12)}),
        ("digits", "cnn", {"widths": (6, 8, 10), "strides": (1, 2)}),
        ("text", "gpt", {"width": 16, "heads": 4}),
        ("text", "mlp", {"features": 12, "hidden": 20}),
    ],
)
def test_a_static_network_scales_from_the_settings(data, host, settings, file):
    task = load_task(file if data == "text" else data, 0, host, host_settings=settings)
    assert _size(task.make_host(width_factor=1.0)) == _size(task.make_host())
    wanted = 1.5 * _size(task.make_host())
    assert abs(_size(task.make_host(width_factor(task, wanted))) / wanted - 1) <= 0.02


@pytest.mark.parametrize(
    ("host", "settings", "said"),
    [
        ("gpt", {"width": 65}, r"width of 65 cannot be parted among 2 heads. Take width=64"),
        ("gpt", {"heads": 5}, r"width of 24 cannot be parted among 5 heads. Take width=25"),
        ("gpt", {"hedas": 2}, "no setting 'hedas' here. Did you mean 'heads'"),
        ("gpt", {"width": (8, 8)}, "width must be one whole number, not 8-8"),
        ("gpt", {"blocks": 0}, "blocks must be 1 to 1,000, not 0"),
        ("gpt", {"blocks": 65_536}, "blocks must be 1 to 1,000, not 65536"),
        ("gpt", {"width": 65_536, "blocks": 20}, r"width=65536,blocks=20 makes a host of [\d,]{17} parameters, whose"),
        ("gpt", {"context": 1}, "context must be 2 to"),
        ("gpt", {"context": 600}, r"leaves 1 windows of .* and 20 are needed. Take 44 at most"),
        ("mlp", {"window": 64}, "window=64 is longer than the context of 32 tokens"),
        ("mlp", {"width": 8}, "no setting 'width' here"),
    ],
)
def test_settings_of_hosts_of_text_that_cannot_be_are_refused(host, settings, said, file):
    with pytest.raises(ConfigError, match=said):
        load_task(file, 0, host, host_settings=settings)


@pytest.mark.parametrize(
    ("host", "settings", "said"),
    [
        ("mlp", {"context": 8}, "no setting 'context' here"),
        ("mlp", {"hidden": (8, 8), "depth": 3}, "hidden=8-8 is 2 layers and depth=3 others"),
        ("mlp", {"depth": 13}, "more than 12 layers"),
        ("mlp", {"hidden": ()}, "hidden must be 1 to"),
        ("cnn", {"widths": (4, 4)}, r"a stem and 1 stages, and strides 1-2-2 are of 3"),
        ("cnn", {"strides": (2, 2, 4)}, r"strides=2-2-4 divide by 16 what is 8 positions long"),
        ("mine:net", {"width": 8}, "are for mlp, cnn and gpt; set the size of mine:net in its factory"),
    ],
)
def test_settings_of_hosts_of_features_that_cannot_be_are_refused(host, settings, said):
    with pytest.raises(ConfigError, match=said):
        load_task("digits", 0, host, host_settings=settings)


def test_the_longest_context_that_a_refusal_names_will_do(file):
    assert load_task(file, 0, "gpt", host_settings={"context": 44}).shape == (44,)
