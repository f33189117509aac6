"""One loss per sample from code that gives means: in one pass where that can be seen, else sample by sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.contracts.errors import ConfigError
from esper.integrations.sample_losses import SampleLosses

SAMPLES, CLASSES, TOKENS = 6, 3, 5


def counted(loss_of):
    """Count how often it is called."""

    def call(batch):
        call.times += 1
        return loss_of(batch)

    call.times = 0
    return call


def one_by_one(loss_of, batch):
    return torch.stack([loss_of(tuple(one[at : at + 1] for one in batch)) for at in range(SAMPLES)])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(4, CLASSES)


@pytest.fixture
def classes():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 4, generator=generator), torch.randint(CLASSES, (SAMPLES,), generator=generator)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(CLASSES, (SAMPLES, TOKENS), generator=generator)
    targets[0, 2:] = -100
    return torch.randn(SAMPLES, TOKENS, 4, generator=generator), targets


WEIGHT = torch.tensor([0.2, 1.0, 3.0])

BY_CLASS = {
    "cross_entropy": F.cross_entropy,
    "smoothed": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
    "module": nn.CrossEntropyLoss(),
    "probabilities": lambda out, y: F.cross_entropy(out, F.one_hot(y, CLASSES).float()),
    "weighted": lambda out, y: F.cross_entropy(out, y, WEIGHT),
    "nll": lambda out, y: F.nll_loss(F.log_softmax(out, 1), y),
    "mse": lambda out, y: F.mse_loss(out, F.one_hot(y, CLASSES).float()),
    "huber": lambda out, y: F.huber_loss(out, F.one_hot(y, CLASSES).float(), "mean", 0.5),
    "bce": lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, CLASSES).float()),
}


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_loss_of_torch_takes_one_pass_a_batch(net, classes, name):
    def plain(batch):
        return BY_CLASS[name](net(batch[0]), batch[1])

    loss_of = counted(plain)
    losses_of = SampleLosses(loss_of)
    assert torch.allclose(losses_of(classes), one_by_one(plain, classes), rtol=1e-5)
    assert loss_of.times == 3  # the batch, and two samples to see that it is right
    losses_of(classes)
    assert loss_of.times == 4


def test_tokens_are_averaged_within_their_sample_and_ignored_ones_do_not_count(net, tokens):
    def plain(batch):
        return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

    loss_of = counted(plain)
    assert torch.allclose(SampleLosses(loss_of)(tokens), one_by_one(plain, tokens), rtol=1e-5)
    assert loss_of.times == 3


@pytest.mark.parametrize(
    "loss_of",
    [
        pytest.param(lambda out, y: 2 * F.cross_entropy(out, y), id="not the loss itself"),
        pytest.param(lambda out, y: F.cross_entropy(out, y) + F.cross_entropy(out**2, y), id="two losses"),
        pytest.param(lambda out, y: F.cross_entropy(out, y, reduction="sum") / len(y), id="a sum"),
        pytest.param(lambda out, y: (out.logsumexp(1) - out.gather(1, y[:, None])[:, 0]).mean(), id="by hand"),
    ],
)
def test_else_each_sample_takes_a_pass(net, classes, loss_of):
    def plain(batch):
        return loss_of(net(batch[0]), batch[1])

    assert torch.allclose(SampleLosses(plain)(classes), one_by_one(plain, classes), rtol=1e-5)


def test_tokens_in_another_order_than_samples_are_noticed(net, tokens):
    """Time before samples: what is flattened so would be dealt to the wrong samples."""

    def plain(batch):
        return F.cross_entropy(net(batch[0].transpose(0, 1)).flatten(0, 1), batch[1].t().flatten())

    assert torch.allclose(SampleLosses(plain)(tokens), one_by_one(plain, tokens), rtol=1e-5)


def test_a_dict_and_what_is_no_sample_go_along(net, classes):
    def loss_of(batch):
        assert batch["name"] == "all"
        return F.cross_entropy(net(batch["x"]) * batch["scale"], batch["y"], reduction="sum") / len(batch["y"])

    batch = {"x": classes[0], "y": classes[1], "scale": torch.tensor(2.0), "name": "all"}
    losses = SampleLosses(loss_of)(batch)
    assert losses.shape == (SAMPLES,)
    assert torch.allclose(losses.mean(), loss_of(batch))


def test_a_batch_whose_samples_cannot_be_told_is_refused(net, classes):
    with pytest.raises(ConfigError, match=r"tensors of \[5, 6\] rows"):
        SampleLosses(lambda batch: net(batch[0]).mean())((classes[0], classes[1][:5]))
    with pytest.raises(ConfigError, match="no tensors"):
        SampleLosses(lambda batch: torch.zeros(()))("text")


def test_a_loss_that_is_no_mean_is_refused(net, classes):
    with pytest.raises(ConfigError, match=r"a tensor of shape \(6, 3\); it must be one number"):
        SampleLosses(lambda batch: net(batch[0]))(classes)
