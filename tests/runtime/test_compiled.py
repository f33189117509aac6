"""Compiled models are found, counted apart, and it is told when torch gives one up."""

import functools

import pytest
import torch
from torch import nn

import esper
from esper.runtime.training.compiled import calls_compiled
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing

pytestmark = pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning",
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning",
)


class CompiledForward(nn.Module):
    @torch.compile(backend="eager")
    def forward(self, x):
        return x


@pytest.fixture
def fast():
    return torch.compile(nn.Linear(2, 2), backend="eager")


@pytest.mark.parametrize(
    "closing_over",
    [
        lambda fast: lambda model, batch: fast(batch),
        lambda fast: functools.partial(lambda model, batch, net: net(batch), net=fast),
        lambda fast: lambda model, batch, steps=(fast,): steps[0](batch),
        lambda fast: nn.Sequential(fast).forward,
        lambda fast: torch.compile(lambda batch: batch, backend="eager"),
    ],
)
def test_a_function_that_calls_a_compiled_model_is_found(closing_over, fast):
    assert calls_compiled(nn.Linear(2, 2), closing_over(fast))


@pytest.mark.parametrize("kind", ["inside", "in place", "by its class"])
def test_so_is_a_model_that_is_compiled(kind, fast):
    model = {
        "inside": nn.Sequential(fast),
        "in place": nn.Linear(2, 2),
        "by its class": nn.Sequential(CompiledForward()),
    }
    if kind == "in place":
        model[kind].compile(backend="eager")
    assert calls_compiled(model[kind])


def test_an_eager_step_is_not():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step(batch):
        optimizer.step()
        return model(batch)

    assert not calls_compiled(model, train_step, torch.compiler.disable(lambda batch: batch), None)


def compiled_run(**session):
    torch._dynamo.reset()
    model = esper.wrap(toy.host(), growing())
    fast, calls = torch.compile(model, backend="eager", dynamic=False), []

    def loss(model, batch):
        calls.append(len(batch[0]))
        return toy.loss(fast, batch)

    optimizer = torch.optim.AdamW(model.parameters(), 0.03)
    made = esper.Session(
        model, optimizer, loss=loss, evaluate=toy.evaluate, planned_steps=120, policy=Script({}), **session
    )
    return made, calls


def test_a_compiled_step_is_counted_apart_and_booked_as_judging():
    session, calls = compiled_run()
    eager = Recipe(policy=Script({}), scheduler=None).build()
    for batch in toy.batches(0):
        session.step(batch)
        eager.session.step(batch)
    assert len(calls) == session.step_count + 1
    assert session._run.books.run_flops == eager.run.books.run_flops
    assert session.probe_flops == eager.run.books.run_flops // 10
    ours, theirs = esper.host_state_dict(session._run.model), esper.host_state_dict(eager.model)
    assert all(map(torch.equal, ours.values(), theirs.values()))


def test_it_is_told_once_that_torch_compiles_no_more():
    session, _ = compiled_run(flops=False)
    x, y = next(toy.batches(0))
    with torch._dynamo.config.patch(recompile_limit=8):
        for size in [*range(2, 15), *range(2, 15)]:
            session.step((x[:size], y[:size]))
    told = [event["text"] for event in session.events if event["event"] == "note" and "torch compiles" in event["text"]]
    (note,) = [text for text in told if "'forward'" in text]
    assert "8 times" in note
    assert "Raise torch._dynamo.config.recompile_limit" in note


def test_a_session_lets_torch_compile_more_often():
    with torch._dynamo.config.patch(recompile_limit=8):
        compiled_run(flops=False)
        assert torch._dynamo.config.recompile_limit == 24


def test_nothing_is_told_where_shapes_are_few():
    session, _ = compiled_run(flops=False)
    x, y = next(toy.batches(0))
    for size in [*range(2, 8)] * 3:
        session.step((x[:size], y[:size]))
    assert not [event for event in session.events if event["event"] == "note" and "torch compiles" in event["text"]]
