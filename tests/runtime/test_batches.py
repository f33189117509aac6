"""Remembered batches come back from a checkpoint as they were, or are refused before it matters."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import esper
from esper.checkpoint.store import read, write
from esper.checkpoint.tree import flatten, unflatten
from esper.contracts.errors import CheckpointError
from esper.runtime.state.batches import copy_of, num_bytes
from tests.runtime import toy
from tests.runtime.toy import Recipe, growing
from tests.tree_digest import tree_digest


class Box(dict):
    """A mapping of one's own."""


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_batches_come_back_equal(tmp_path):
    batches = [{"x": torch.rand(2, 3), "names": ["a", "b"], "n": 2}, (torch.arange(3), None, 1.5)]
    write(tmp_path, batches)
    assert tree_digest(read(tmp_path)) == tree_digest(batches)


@pytest.mark.parametrize("make", [lambda x, y: Pair(x, y), lambda x, y: Box(x=x, y=y), lambda x, y: (x, y, object())])
def test_a_batch_that_would_come_back_as_something_else_is_refused_at_the_first_step(make, tmp_path):
    def loss(model, batch):
        return toy.loss(model, tuple(batch.values()) if isinstance(batch, dict) else batch[:2])

    batch = make(*next(toy.batches(0)))
    Recipe().build(loss=loss).session.step(batch)
    with pytest.raises(esper.ConfigError, match="that no checkpoint can hold"):
        Recipe().build(loss=loss, directory=tmp_path).session.step(batch)


def test_an_ordered_dict_comes_back_as_one(tmp_path):
    def loss(model, batch):
        return toy.loss(model, (batch["x"], batch["y"]))

    batch = OrderedDict(zip("xy", next(toy.batches(0)), strict=True))
    Recipe().build(loss=loss, directory=tmp_path / "run").session.step(batch)
    write(tmp_path, [batch])
    (back,) = read(tmp_path)
    assert type(back) is OrderedDict
    assert tree_digest(back) == tree_digest(batch)


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[PAD]": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")


def test_what_a_tokenizer_makes_is_copied_and_stored_as_what_it_is(tmp_path):
    batch = tokenizer()(["the cat sat", "cat"], padding=True, return_tensors="pt")
    for back in (copy_of(batch), unflatten(*flatten(batch)), write(tmp_path, [batch]) and read(tmp_path)[0]):
        assert type(back) is type(batch)
        assert list(back) == list(batch)
        assert torch.equal(back.input_ids, batch.input_ids)
        assert back.input_ids is not batch.input_ids
    assert num_bytes(batch) == sum(tensor.nbytes for tensor in batch.values())


def test_a_class_that_is_not_on_the_list_is_not_imported():
    with pytest.raises(CheckpointError, match=r"Trainer.* is none of BatchEncoding, BatchFeature"):
        unflatten({"transformers": ["Trainer", {"dict": []}]}, {})


@pytest.mark.parametrize("max_bytes", [1, 2**30])
def test_a_run_on_batches_of_transformers_resumes_within_a_window(max_bytes, tmp_path):
    """In memory and on disk; a loss that takes its labels out among them."""
    from transformers import BatchFeature

    def loss(model, batch):
        labels = batch.pop("labels")
        return toy.loss(model, (batch.pixel_values, labels))

    def batches(epoch):
        return (BatchFeature({"pixel_values": x, "labels": y}) for x, y in toy.batches(epoch))

    def train(trial, epochs):
        for epoch in range(trial.session.epoch, epochs):
            for batch in batches(epoch):
                trial.session.step(batch)
            trial.session.after_epoch()
        return trial

    recipe = Recipe(growing(max_batch_bytes=max_bytes))
    whole = train(recipe.build(loss=loss, directory=tmp_path / "whole"), 7)
    assert whole.events("arm_ended")
    train(recipe.build(loss=loss, directory=tmp_path / "cut"), 3)
    resumed = recipe.build(loss=loss, directory=tmp_path / "resumed")
    resumed.session.load(tmp_path / "cut" / "checkpoints")
    assert train(resumed, 7).digest() == whole.digest()
