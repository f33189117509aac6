"""Losses of batches and of samples, for classes and for tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.evaluation.scoring import CHUNK, cross_entropy, per_sample
from esper.tasks.gpt import GPTHost
from esper.tasks.task import Samples


@pytest.fixture
def windows() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(*(torch.randint(7, (30, 16), generator=generator) for _ in range(2)))


def test_classes_are_scored_sample_by_sample():
    model, samples = nn.Linear(5, 4), Samples(torch.randn(20, 5), torch.arange(20) % 4)
    losses, correct = per_sample(model, samples)
    assert torch.equal(losses, F.cross_entropy(model(samples.x), samples.y, reduction="none"))
    assert torch.equal(correct, (model(samples.x).argmax(1) == samples.y).float())
    assert cross_entropy(model, samples) == F.cross_entropy(model(samples.x), samples.y)


def test_a_window_counts_as_one_sample_with_means_over_its_tokens(windows):
    model = GPTHost(7, 16)()
    losses, correct = per_sample(model, windows)
    assert losses.shape == correct.shape == (30,)
    logits = model(windows.x)
    expected = F.cross_entropy(logits[3], windows.y[3])
    torch.testing.assert_close(losses[3], expected)
    assert correct[3] == (logits[3].argmax(1) == windows.y[3]).float().mean()
    torch.testing.assert_close(cross_entropy(model, windows), losses.mean())


def test_many_samples_are_scored_in_parts_alike(windows):
    model = GPTHost(7, 16)()
    many = Samples(*(part.repeat(CHUNK // 160, 1) for part in windows))
    losses, _ = per_sample(model, many)
    torch.testing.assert_close(losses[:30], per_sample(model, windows)[0])
    assert len(losses) == len(many.y)


def test_scoring_is_in_eval_mode_and_leaves_every_mode_as_it_was(windows):
    model = GPTHost(7, 16, dropout=0.5)()
    model.blocks[1].eval()
    first, second = (per_sample(model, windows)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert not model.blocks[1].training
