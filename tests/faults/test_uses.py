"""What else is done to wrapped models: moved, loaded, copied, changed."""

import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import SGD, AdamW

import esper
from tests.faults.conftest import MISTAKE
from tests.faults.sameness import assert_same, bits, everything, refused
from tests.runtime import toy

X = toy.DATA.x[:5]
BATCH = next(toy.batches(0))


@pytest.fixture(autouse=True)
def _counted(record_property):
    record_property("faults", MISTAKE)


def wrapped(**config: Any) -> nn.Module:
    return esper.wrap(toy.host(), esper.GrowthConfig(**config))


def session_of(model: nn.Module, optimizer: Any = None, **arguments: Any) -> esper.Session:
    optimizer = AdamW(model.parameters(), lr=0.03) if optimizer is None else optimizer
    given = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 120} | arguments
    return esper.Session(model, optimizer, **given)


def prefixed(prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + name, value) for name, value in toy.host().state_dict().items())


def through_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replaced(model: nn.Module) -> nn.Module:
    model[2] = nn.Linear(2, 3)
    with torch.no_grad():
        model[2].weight.fill_(0.5)
        model[2].bias.fill_(0.5)
    return model


def filled(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.constant_(parameter, 0.5)


ALIKE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to double": lambda model: model.double().float(),
    "to half and back": lambda model: model.half().float(),
    "to bfloat16 and back": lambda model: model.to(torch.bfloat16).float(),
    "to the CPU": lambda model: model.to("cpu"),
    "to another memory format": lambda model: model.to(memory_format=torch.channels_last),
    "shared memory": lambda model: model.share_memory(),
    "deepcopy": copy.deepcopy,
    "shallow copy": copy.copy,
    "pickle": through_pickle,
    "frozen after wrapping": lambda model: model.requires_grad_(False),
    "frozen and thawed": lambda model: model.requires_grad_(False).requires_grad_(True),
    "one bias frozen": lambda model: (model[0].bias.requires_grad_(False), model)[1],
    "eval and train": lambda model: model.eval().train(),
    "a layer replaced": replaced,
    "a layer deleted": lambda model: (model.__delitem__(1), model)[1],
    "the last layer set": lambda model: (model.append(nn.Tanh()).__setitem__(-1, nn.Softmax(-1)), model)[1],
    "a layer popped": lambda model: (model.pop(1), model)[1],
    "layers extended": lambda model: model.extend(nn.Sequential(nn.Tanh(), nn.Softmax(-1))),
    "a layer appended": lambda model: model.append(nn.Softmax(-1)),
    "a layer inserted": lambda model: model.insert(1, nn.Tanh()),
    "a bias taken off": lambda model: (model[0].register_parameter("bias", None), model)[1],
    "a parameter replaced": lambda model: (setattr(model[0], "bias", nn.Parameter(torch.ones(2))), model)[1],
    "a buffer added": lambda model: (model.register_buffer("scale", torch.ones(2)), model)[1],
    "an attribute added": lambda model: (setattr(model, "name", "mine"), model)[1],
    "a hook added": lambda model: (model[0].register_forward_hook(lambda *args: args[-1] * 2), model)[1],
    "a hook before the input": lambda model: (model.register_forward_pre_hook(lambda _, args: (args[0] + 1,)), model)[
        1
    ],
    "a hook on a parameter": lambda model: (model[0].weight.register_hook(lambda grad: grad * 2), model)[1],
    "weight norm added": lambda model: (nn.utils.parametrizations.weight_norm(model[0]), model)[1],
    "pruned afterwards": lambda model: (prune.l1_unstructured(model[0], "weight", 1), model)[1],
    "initialised anew": lambda model: model.apply(
        lambda one: [nn.init.ones_(p) for p in one.parameters(False)] and None
    ),
    "a bare state": lambda model: (model.load_state_dict(toy.host().state_dict()), model)[1],
    "a state not strict": lambda model: (model.load_state_dict({"0.bias": torch.ones(2)}, strict=False), model)[1],
    "a state put in place": lambda model: (model.load_state_dict(toy.host().state_dict(), assign=True), model)[1],
    "a state of its own": lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict())), model)[1],
    "DataParallel": nn.DataParallel,
    "within another module": lambda model: nn.Sequential(OrderedDict(inner=model)),
    "its layers in another": lambda model: nn.Sequential(*model),
    "wrapped, unwrapped": lambda model: esper.unwrap(model) if hasattr(model, "_esper") else model,
    "exported": lambda model: esper.export(model) if hasattr(model, "_esper") else model,
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_done_to_a_wrapped_model_does_what_it_does_to_the_bare_one(name):
    bare, model = ALIKE[name](toy.host()), ALIKE[name](wrapped())
    assert list(esper.host_state_dict(model)) == list(bare.state_dict())
    assert_same(bare, model, (X,))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model."])
@pytest.mark.parametrize("is_strict", [True, False])
def test_a_state_under_other_names_ends_as_with_the_bare_model(prefix, is_strict):
    bare, model = toy.host(), wrapped()
    before = everything(model)
    if is_strict:
        with pytest.raises(RuntimeError) as expected:
            bare.load_state_dict(prefixed(prefix))
        with pytest.raises(RuntimeError) as caught:
            model.load_state_dict(prefixed(prefix))
        assert str(caught.value).replace("Kasmina", "") == str(expected.value)
    else:
        assert model.load_state_dict(prefixed(prefix), strict=False) == bare.load_state_dict(
            prefixed(prefix), strict=False
        )
    assert everything(model) == before


def test_a_wrapped_state_loads_strictly_into_the_bare_model():
    model = wrapped()
    toy.host().load_state_dict(model.state_dict())


@pytest.mark.parametrize("trains", ["one optimizer over two models", "two optimizers over one"])
def test_other_ways_to_step_are_those_of_the_bare_model(trains):
    states = []
    for wrap in (lambda model: model, esper.wrap):
        first, second = wrap(toy.host()), wrap(toy.host())
        if trains.startswith("one"):
            optimizers = [SGD([*first.parameters(), *second.parameters()], lr=0.1)]
        else:
            optimizers = [SGD(first[0].parameters(), lr=0.1), AdamW(first[2].parameters())]
        for batch in toy.batches(0):
            (toy.loss(first, batch) + toy.loss(second, batch)).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        states.append(bits([dict(first.state_dict()), dict(second.state_dict())]))
    assert states[0] == states[1]


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_scripting_a_wrapped_model_computes_the_same_or_ends_with_a_word_from_torch(how):
    bare, model = toy.host().eval(), wrapped().eval()
    with warnings.catch_warnings(action="ignore"):
        if how == "traced":
            assert torch.equal(torch.jit.trace(model, X)(X), bare(X))
        else:
            assert torch.equal(torch.jit.script(esper.export(model))(X), bare(X))


UNFIT: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "twice": (lambda: esper.wrap(wrapped()), ("already carries seeds", "esper.unwrap")),
    "a part of a wrapped model": (lambda: esper.wrap(wrapped()[0]), ("already carries seeds",)),
    "around a wrapped model": (lambda: esper.wrap(nn.Sequential(wrapped(), nn.Linear(3, 3))), ("'0' already",)),
    "lazy": (lambda: esper.wrap(nn.Sequential(nn.LazyLinear(3))), ("'0' is lazy", "example batch")),
    "nothing in it": (lambda: esper.wrap(nn.Sequential()), ("no parameters",)),
    "nothing to train": (lambda: esper.wrap(nn.Sequential(nn.ReLU(), nn.Flatten())), ("no parameters",)),
    "no channels": (
        lambda: esper.wrap(nn.Sequential(nn.Embedding(3, 0)), esper.GrowthConfig(layers=["0"])),
        ("'0' writes no channels",),
    ),
    "more seeds than channels": (lambda: wrapped(layers={"0": 3}), ("'0' has 2 output channels", "3 seeds")),
    "a session on a bare model": (lambda: session_of(toy.host()), ("carries no seeds", "esper.wrap")),
    "a session on a part": (lambda: session_of(wrapped()[2]), ("carries no seeds", "esper.wrap")),
    "a session on DataParallel": (
        lambda: session_of(nn.DataParallel(wrapped())),
        ("DataParallel", "wrapped model itself"),
    ),
    "a session on a copy, its optimizer over another": (
        lambda: session_of(copy.deepcopy(model := wrapped()), AdamW(model.parameters())),
        ("optimizer",),
    ),
    "a session on a frozen model": (lambda: session_of(wrapped().requires_grad_(False)), ("frozen",)),
    "a session on a model that lost a layer": (lambda: session_of(ALIKE["a layer deleted"](wrapped())), ("since",)),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_is_refused_in_words(name):
    call, named = UNFIT[name]
    with refused(None, *named):
        call()


def test_a_meta_model_is_wrapped_and_computes_shapes():
    with torch.device("meta"):
        bare, model = toy.host(), wrapped()
        assert_same(bare, model, (torch.empty(5, 4),))
