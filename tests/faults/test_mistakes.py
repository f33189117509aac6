"""What a user may get wrong, by hand or by habit: it works as with the bare model, or is refused in words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

import esper
from tests.faults.conftest import MISTAKE
from tests.faults.sameness import bits, refused
from tests.runtime import toy
from tests.runtime.toy import growing

NAN = float("nan")
BATCH = next(toy.batches(0))
X = toy.DATA.x[:5]


@pytest.fixture(autouse=True)
def _counted(record_property):
    record_property("faults", MISTAKE)


def wrapped(**config: Any) -> nn.Module:
    return esper.wrap(toy.host(), esper.GrowthConfig(**config))


SETTINGS: list[tuple[str, Any]] = [
    ("seeds_per_layer", "64"),
    ("seeds_per_layer", True),
    ("seeds_per_layer", 0),
    ("layers", "0"),
    ("layers", {"0": "4"}),
    ("layers", {"0": True}),
    ("layers", {0: 4}),
    ("layers", ["encoder.*"]),
    ("layers", ["0:"]),
    ("layers", [["0"]]),
    ("exclude", "0"),
    ("exclude", ["nothing"]),
    ("colonies", "*"),
    ("blueprints", "widen"),
    ("blueprints", ["bottelneck_mlp"]),
    ("strategy", "fixed"),
    ("axis", {"0": 2}),
    ("axis", {0: 1}),
    ("axis", {"encoder": 1}),
    ("output_fields", {0: "logits"}),
    ("output_fields", {"encoder": "logits"}),
    ("max_rounds", -1),
    ("grow_at", NAN),
    ("grow_until", 0.01),
    ("patience", 2.5),
    ("capacity_per_round", "1"),
    ("max_growth", NAN),
    ("max_train_flops", 0.5),
    ("target_metric", NAN),
    ("min_delta", -0.1),
    ("seed", None),
    ("trial", "rounds"),
    ("compare", "flop"),
    ("arms", 3),
    ("freeze", "never"),
    ("objective", "mse"),
    ("boundary_steps", 0),
    ("graft_lr", "fast"),
    ("rewarm", 2.0),
    ("min_confidence", 7),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=lambda value: repr(value))
def test_a_setting_of_the_wrong_kind_is_refused_by_its_name(name, value):
    model = toy.host()
    shown = value[0] if isinstance(value, list) else value
    named = "grow_at" if name == "grow_until" else {"strategy": "strategy", "blueprints": "blueprint"}.get(name, name)
    with refused(model, named, *([shown] if isinstance(shown, str) and name != "layers" else [])):
        esper.wrap(model, esper.GrowthConfig(**{name: value}))


@pytest.mark.parametrize(
    "config", [{"seeds_per_layer": 4}, "0", esper.GrowthConfig, torch.zeros(1, 4), 64], ids=lambda value: repr(value)
)
def test_what_is_no_configuration_is_refused(config):
    model = toy.host()
    with refused(model, "config", "GrowthConfig"):
        esper.wrap(model, config)


@pytest.mark.parametrize("model", [None, "model", nn.Linear, toy.host().parameters(), [toy.host()]])
def test_what_is_no_model_is_refused(model):
    with refused(None, "nn.Module"):
        esper.wrap(model)
    with refused(None, "model", "esper.wrap"):
        esper.Session(model, None, loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)
    for ask in (esper.export, esper.unwrap, esper.summary, esper.host_state_dict):
        with refused(None, "model", "esper.wrap"):
            ask(model)


def build(model: nn.Module | None = None, optimizer: Any = None, **arguments: Any) -> esper.Session:
    model = esper.wrap(toy.host(), growing()) if model is None else model
    optimizer = AdamW(model.parameters(), lr=0.03) if optimizer is None else optimizer
    given = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 120} | arguments
    return esper.Session(model, optimizer, **given)


ARGUMENTS: list[tuple[str, Any]] = [
    ("evaluate", None),
    ("evaluate", 3),
    ("loss", "mse"),
    ("planned_steps", "10"),
    ("planned_steps", 0),
    ("planned_steps", -3),
    ("planned_steps", True),
    ("scheduler", "cosine"),
    ("scheduler", [None]),
    ("scheduler_every", None),
    ("scaler", "on"),
    ("clip_grad_norm", "1"),
    ("clip_grad_norm", NAN),
    ("accumulate", "2"),
    ("extra", [1]),
    ("extra", {1: nn.Linear(2, 2)}),
    ("loader", [1, 2]),
    ("policy", 3),
    ("policy", toy.Script),
    ("directory", 5),
    ("directory", __file__),
    ("directory", __file__ + "/run"),
    ("checkpoint_steps", 0),
    ("checkpoint_steps", 5),  # and no directory
    ("flags", "all"),
    ("on_event", [3]),
    ("optimizer", "adam"),
    ("optimizer", AdamW),
    ("optimizer", toy.host().parameters()),
    ("optimizer", [None]),
    ("optimizer", []),
    ("optimizer", AdamW(toy.host().parameters())),
]


@pytest.mark.parametrize(("name", "value"), ARGUMENTS)
def test_an_argument_of_the_wrong_kind_is_refused_by_its_name(name, value):
    model = esper.wrap(toy.host(), growing())
    named = {"on_event": "listener", "scheduler": "scheduler"}.get(name, name)
    with refused(model, named):
        build(model, **{name: value})


VALUES: dict[str, Any] = {
    "text": ["a"] * 300,
    "nothing": None,
    "nothing for each": [None] * 300,
    "a generator": (value for value in range(300)),
    "of unequal length": [[1.0], [1.0, 2.0]] * 10,
    "one number": torch.tensor(0.5),
    "empty": [],
    "complex": torch.ones(300, dtype=torch.complex64),
    "without memory": torch.ones(300, device="meta"),
    "sparse": torch.ones(300).to_sparse(),
}


@pytest.mark.parametrize("name", VALUES)
def test_losses_that_cannot_be_judged_are_refused(name):
    model = esper.wrap(toy.host(), growing())
    with refused(model, "evaluate", "losses"):
        build(model, evaluate=lambda model: esper.Evaluation(VALUES[name]))


@pytest.mark.parametrize("name", ["nan", "grad", "whole numbers", "tensors in a list"])
def test_losses_of_another_kind_are_taken(name):
    values = {
        "nan": torch.full((300,), NAN),
        "grad": torch.ones(300, requires_grad=True),
        "whole numbers": torch.ones(300, dtype=torch.int64),
        "tensors in a list": [torch.tensor(1.0)] * 300,
    }[name]
    session = build(evaluate=lambda model: esper.Evaluation(values))
    session.step(BATCH)
    session.after_epoch()
    session.finish()


LOSSES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "a vector": lambda model, batch: model(batch[0]),
    "nothing": lambda model, batch: None,
    "a float": lambda model, batch: 0.5,
    "a pair": lambda model, batch: (toy.loss(model, batch), 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_no_scalar_is_refused_and_the_run_goes_on(name):
    losses = [LOSSES[name]]
    model = esper.wrap(toy.host(), growing())
    session = build(model, loss=lambda model, batch: losses[0](model, batch))
    with refused(model, "loss", "scalar"):
        session.step(BATCH)
    losses[0] = toy.loss
    goes_on(session)


TORCH_ENDS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "detached": lambda model, batch: toy.loss(model, batch).detach(),
    "without gradients": lambda model, batch: torch.no_grad()(toy.loss)(model, batch),
    "in inference mode": lambda model, batch: torch.inference_mode()(toy.loss)(model, batch),
    "a whole number": lambda model, batch: torch.tensor(3),
    "complex": lambda model, batch: toy.loss(model, batch) * 1j,
    "of another width": lambda model, batch: toy.loss(model, (batch[0][:, :3], batch[1])),
    "an error of its own": lambda model, batch: model(batch[0]).nothing,
    "of no batch": lambda model, batch: toy.loss(model, None),
}


def goes_on(session: esper.Session) -> None:
    """It trains, ends an epoch and finishes as if nothing had been."""
    steps = session.step_count
    losses = [float(session.step(batch)) for batch in toy.batches(1)]
    assert session.step_count == steps + len(losses)
    session.after_epoch()
    session.finish()
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


@pytest.mark.parametrize("first", ["at the first step", "later"])
@pytest.mark.parametrize("name", TORCH_ENDS)
def test_an_error_in_the_callers_loss_passes_as_it_is_and_the_run_goes_on(name, first):
    losses: list[Any] = [TORCH_ENDS[name]]
    bare = toy.host()
    with pytest.raises((RuntimeError, AttributeError, TypeError)) as expected:
        losses[0](bare, BATCH).backward()
    model = esper.wrap(toy.host(), growing())
    session = build(model, loss=lambda model, batch: losses[0](model, batch))
    if first == "later":
        losses[0] = toy.loss
        session.step(BATCH)
        losses[0] = TORCH_ENDS[name]
    before = bits(model.state_dict())
    with pytest.raises(expected.type) as caught:
        session.step(BATCH)
    assert str(caught.value) == str(expected.value)
    assert bits(model.state_dict()) == before
    losses[0] = toy.loss
    goes_on(session)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_ends_as_in_torch_and_the_run_goes_on(mode):
    session = build()
    with mode(), pytest.raises(RuntimeError, match="does not require grad"):
        session.step(BATCH)
    with mode():
        session.after_epoch()
    goes_on(session)


BY_HAND: dict[str, tuple[Callable[[esper.Session], Any], tuple[str, ...]]] = {
    "no such place": (lambda session: session.germinate("encoder"), ("'encoder'",)),
    "a place that is no text": (lambda session: session.germinate(0), ("place 0",)),
    "no such blueprint": (lambda session: session.germinate("", blueprint="mlp"), ("blueprint 'mlp'",)),
    "a blueprint that is none": (lambda session: session.germinate("", blueprint=None), ("blueprint None",)),
    "settings that are none": (lambda session: session.germinate("", settings="8"), ("settings", "'8'")),
    "an unknown setting": (lambda session: session.germinate("", settings={"width": 8}), ("'width'", "hidden")),
    "a setting of text": (lambda session: session.germinate("", settings={"hidden": "8"}), ("hidden", "'8'")),
    "no such strategy": (lambda session: session.germinate("", strategy="fast"), ("'fast'", "fixed_ramp")),
    "no such seed": (lambda session: session.germinate("", seed_id=9), ("seed 9",)),
    "a seed of text": (lambda session: session.germinate("", seed_id="first"), ("'first'",)),
    "nothing to cancel": (lambda session: session.cancel("", 0), ("CANCELLED",)),
    "nothing to go back to": (lambda session: session.rollback(), ("no good state",)),
    "seeds as text": (lambda session: session.rechunk("", "2"), ("''", "'2'")),
    "no command": (lambda session: session.submit("grow"), ("'grow'", "Command")),
    "no listener": (lambda session: session.subscribe(3), ("listener", "3")),
    "nobody listening": (lambda session: session.subscribe(None), ("listener", "None")),
    "after_step, where Session steps": (lambda session: session.after_step(BATCH, 0.5), ("session.step",)),
    "a batch that cannot be copied": (lambda session: session.step(value for value in BATCH), ("batch", "generator")),
    "a checkpoint that is not there": (lambda session: session.load("/nothing/there"), ("/nothing/there",)),
    "a checkpoint that is a file": (lambda session: session.load(__file__), (__file__,)),
    "a checkpoint of no name": (lambda session: session.load(None), ("path", "None")),
    "saving over a file": (lambda session: session.save(__file__), (__file__, "is a file")),
    "saving into a file": (lambda session: session.save(__file__ + "/a/b"), (__file__, "is a file")),
    "saving under a number": (lambda session: session.save(3), ("path", "3")),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_asked_wrongly_is_refused_and_the_run_goes_on(name):
    ask, named = BY_HAND[name]
    model = esper.wrap(toy.host(), growing())
    session = build(model)
    with refused(model, *named):
        ask(session)
    goes_on(session)


LOADERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a tensor alone": (lambda: esper.BatchLoader(X, 2, 0), "tensors"),
    "lists": (lambda: esper.BatchLoader(([1, 2], [3, 4]), 2, 0), "tensors"),
    "a scalar": (lambda: esper.BatchLoader((torch.tensor(1.0),), 2, 0), "tensors"),
    "of unequal length": (lambda: esper.BatchLoader((X, X[:3]), 2, 0), "[3, 5]"),
    "nothing": (lambda: esper.BatchLoader((), 2, 0), "tensors"),
    "no samples": (lambda: esper.BatchLoader((X[:0],), 2, 0), "[0]"),
    "batches of none": (lambda: esper.BatchLoader((X,), 0, 0), "batch_size"),
    "batches of text": (lambda: esper.BatchLoader((X,), "2", 0), "batch_size"),
    "a seed of text": (lambda: esper.BatchLoader((X,), 2, "0"), "seed"),
    "a decay of text": (lambda: esper.param_groups(wrapped(), "0.1"), "weight_decay"),
    "a decay below 0": (lambda: esper.param_groups(wrapped(), -1), "weight_decay"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_tools_given_something_else_refuse_it_by_name(name):
    make, named = LOADERS[name]
    with refused(None, named):
        make()
