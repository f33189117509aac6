"""Losses of batches and of samples, for classes, tokens, quantities and several labels."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, r2_score
from torch import nn

from esper.contracts.errors import EvaluationError
from esper.evaluation.scoring import CHUNK, macro_f1, mean_loss, per_sample
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
    assert mean_loss(model, samples) == F.cross_entropy(model(samples.x), samples.y)


def test_a_window_counts_as_one_sample_with_means_over_its_tokens(windows):
    model = GPTHost(7, 16)()
    losses, correct = per_sample(model, windows)
    assert losses.shape == correct.shape == (30,)
    logits = model(windows.x)
    expected = F.cross_entropy(logits[3], windows.y[3])
    torch.testing.assert_close(losses[3], expected)
    assert correct[3] == (logits[3].argmax(1) == windows.y[3]).float().mean()
    torch.testing.assert_close(mean_loss(model, windows), losses.mean())


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


@pytest.fixture
def quantities() -> Samples:
    return Samples(torch.randn(50, 5), torch.randn(50) * 3 + 1)


def test_the_mean_score_of_a_quantity_is_r2(quantities):
    model = nn.Linear(5, 1)
    losses, scores = per_sample(model, quantities)
    with torch.no_grad():
        predicted = model(quantities.x).flatten()
    torch.testing.assert_close(losses, (predicted - quantities.y).square())
    assert scores.mean() == pytest.approx(r2_score(quantities.y.numpy(), predicted.numpy()), abs=1e-5)
    torch.testing.assert_close(mean_loss(model, quantities), losses.mean())


def test_scores_of_a_part_are_relative_to_the_whole(quantities):
    model, part = nn.Linear(5, 1), Samples(*(one[:20] for one in quantities))
    torch.testing.assert_close(per_sample(model, part, among=quantities.y)[1], per_sample(model, quantities)[1][:20])


def test_a_host_may_give_quantities_flat(quantities):
    flat = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    assert torch.equal(per_sample(flat, quantities)[0], per_sample(flat[0], quantities)[0])


def test_several_labels_of_a_sample_are_scored_together():
    model, samples = nn.Linear(5, 3), Samples(torch.randn(20, 5), torch.randint(2, (20, 3)).float())
    losses, scores = per_sample(model, samples)
    logits = model(samples.x)
    torch.testing.assert_close(losses, F.binary_cross_entropy_with_logits(logits, samples.y, reduction="none").mean(1))
    assert torch.equal(scores, ((logits > 0) == (samples.y > 0.5)).float().mean(1))
    torch.testing.assert_close(mean_loss(model, samples), losses.mean())


def test_macro_f1_is_what_scikit_learn_says():
    predicted, true = (torch.randint(2, (40, 5)).bool() for _ in range(2))
    predicted[:, 4] = true[:, 4] = False
    expected = f1_score(true.numpy(), predicted.numpy(), average="macro", zero_division=0)
    assert macro_f1(predicted, true) == pytest.approx(expected)


def test_predictions_of_another_number_than_the_targets_are_refused(quantities):
    with pytest.raises(EvaluationError, match=r"gives \[50, 2\] for targets of shape \[50\]"):
        mean_loss(nn.Linear(5, 2), quantities)
