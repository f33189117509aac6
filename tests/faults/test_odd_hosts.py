"""Hosts of all kinds: each is the bare model to the bit while its seeds sleep, or is refused and left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import esper
from tests.faults.conftest import MISTAKE
from tests.faults.odd_hosts import HOSTS, UNFIT, adds_little, adds_one, made
from tests.faults.sameness import assert_same, assert_sentence, everything, told


def error_of(call: Callable[[], Any]) -> Exception | None:
    """What a call raises, if it does."""
    try:
        call()
    except (esper.EsperError, RuntimeError, IndexError) as error:
        return error
    return None


@pytest.mark.parametrize("seen", ["by its class", "by an example"])
@pytest.mark.parametrize("name", HOSTS)
def test_a_host_of_any_kind_is_the_bare_one_to_the_bit(name, seen, record_property):
    bare, inputs = made(HOSTS[name])
    model = esper.wrap(made(HOSTS[name])[0], example=inputs if seen == "by an example" else None)
    assert list(model.state_dict()) == list(bare.state_dict())
    assert_same(bare, model, inputs)
    record_property("faults", MISTAKE)


@pytest.mark.parametrize("name", UNFIT)
def test_an_input_that_does_not_fit_ends_as_with_the_bare_model(name, record_property):
    bare, inputs = made(UNFIT[name])
    assert_same(bare, esper.wrap(made(UNFIT[name])[0]), inputs)
    record_property("faults", MISTAKE)


@pytest.mark.parametrize("name", UNFIT)
def test_an_example_that_does_not_fit_is_refused_and_leaves_the_model_alone(name, record_property):
    """In Esper's words, or by the error with which the model itself ends."""
    bare, inputs = made(UNFIT[name])
    how, bares_own = told(lambda: bare(*inputs))
    before = everything(bare)
    error = error_of(lambda: esper.wrap(bare, example=inputs))
    if error is None:
        assert_same(made(UNFIT[name])[0], bare, inputs)
    else:
        assert everything(bare) == before
        if isinstance(error, esper.ConfigError):
            assert_sentence(str(error), ("example",))
        else:
            assert (type(error).__name__, str(error)) == (how, bares_own)
    record_property("faults", MISTAKE)


def test_a_mistake_of_one_bit_is_seen(record_property):
    """The controls: what is no longer the bare model, and what a refusal has touched."""
    bare, inputs = made(HOSTS["no_bias"])
    one_bit, one_hook = (esper.wrap(made(HOSTS["no_bias"])[0]) for _ in range(2))
    with torch.no_grad():
        weight = one_bit[0].weight.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
    one_hook.register_forward_hook(adds_little)
    for model in (one_bit, one_hook):
        with pytest.raises(AssertionError):
            assert_same(bare, model, inputs)
    for touch in (
        lambda model: model[0].register_forward_hook(adds_one),
        lambda model: model[0].eval(),
        lambda model: model[0].weight.requires_grad_(False),
        lambda model: model[0].weight.data.neg_(),
        lambda model: setattr(model[0], "name", "first"),
        lambda model: esper.wrap(model),
    ):
        bare = made(HOSTS["no_bias"])[0]
        before = everything(bare)
        assert everything(bare) == before
        touch(bare)
        assert everything(bare) != before
    record_property("faults", "8 controls")
