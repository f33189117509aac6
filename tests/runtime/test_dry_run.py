"""What could only break once something grows is found at the first step, and nothing is left of the search."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import traced
from esper.runtime.state.module_state import module_facts
from esper.runtime.trying.dry_run import dry_run
from tests.runtime import replaying, toy
from tests.runtime.toy import Recipe, Script, growing
from tests.tree_digest import tree_digest

SPAN = "body.0:body.1"


class Steps(nn.Module):
    """A chain whose steps are checkpointed one by one.

    Args:
        reentrant: how; None checkpoints nothing.
        as_one: checkpoints the chain as a whole instead.
    """

    def __init__(self, reentrant: bool | None, *, as_one: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.reentrant, self.as_one = reentrant, as_one
        self.body = nn.Sequential(*[nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.as_one and self.training:
            return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))
        for step in self.body.children():
            x = (
                step(x)
                if self.reentrant is None or not self.training
                else checkpoint(step, x, use_reentrant=self.reentrant)
            )
        return self.head(x)


class LossInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.linear(x)
        loss = {} if y is None else {"loss": nn.functional.cross_entropy(logits, y)}
        return {**loss, "logits": logits}


class Tagged(nn.Module):
    """A parent that looks at more than the values of a tensor."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.head, self.read = nn.ModuleList([Tagging()]), nn.Linear(4, 3), read

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.steps[0](x)))


class Tagging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.scale = 2.0
        return y


class Masked(nn.Module):
    """A block that takes a mask, in which what is shut is minus infinity, before what it works on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.head = nn.ModuleList([Attending()]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.where(x > 2, -torch.inf, 0.0)
        return self.head(self.steps[0](mask, x))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return self.linear(x) * (mask == 0)


def session_of(model: nn.Module, loss: Any = toy.loss, **config: Any) -> esper.Session:
    """It chooses its places itself unless they are named."""
    esper.wrap(model, growing(**{"layers": None} | config), next(toy.batches(0))[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return esper.Session(model, optimizer, loss=loss, evaluate=evaluate, planned_steps=120, policy=Script({}))


def evaluate(model: nn.Module) -> esper.Evaluation:
    output = model(toy.DATA.held_x)
    logits = output["logits"] if isinstance(output, dict) else output
    return esper.Evaluation(losses=nn.functional.cross_entropy(logits, toy.DATA.held_y, reduction="none"))


def bytes_of(session: esper.Session) -> str:
    """Of all that training has made, and of the random streams."""
    captured = session._run.captures.capture()
    return tree_digest([captured["clock"], *(captured["body"][part] for part in ("model", "grads", "optimizer"))])


def notes(session: esper.Session) -> list[str]:
    return [event["text"] for event in session.events if event["event"] == "note" and "Left out" in event["text"]]


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "reentrant": (lambda: Steps(True), toy.loss, SPAN, "no gradient reaches a graft there"),
    "non_reentrant": (lambda: Steps(False), toy.loss, SPAN, "the step fails with a graft there"),
    "loss_inside": (LossInside, lambda m, b: m(*b)["loss"], "", "no gradient reaches a graft there"),
    "not_finite": (Masked, toy.loss, "steps.0", "is not finite"),
    "tag_missed": (lambda: Tagged(lambda y: y * getattr(y, "scale", 1.0)), toy.loss, "steps.0", "changes the loss"),
    "tag_needed": (lambda: Tagged(lambda y: y * y.scale), toy.loss, "steps.0", "AttributeError"),
}
refused = pytest.mark.parametrize(("make", "loss", "layer_id", "reason"), REFUSED.values(), ids=REFUSED)


@refused
def test_a_place_that_was_named_and_cannot_grow_is_refused_at_the_first_step(make, loss, layer_id, reason):
    session = session_of(make(), loss, layers=[layer_id])
    before = bytes_of(session)
    with pytest.raises(esper.ConfigError, match=f"cannot grow.*{reason}.*Name other places"):
        session.step(next(toy.batches(0)))
    assert bytes_of(session) == before
    assert session.step_count == 0


@refused
def test_one_that_was_chosen_is_left_out_and_told(make, loss, layer_id, reason):
    session = session_of(make(), loss, colonies=[])
    for batch in itertools.islice(toy.batches(0), 2):
        session.step(batch)
    (note,) = notes(session)
    assert reason in note
    assert (repr(layer_id) if layer_id else "The whole model") in note
    seen = {place.layer_id for place in session._run.places.values()} - {
        place.layer_id for place in session._growth.observer.observe().places
    }
    assert layer_id in seen
    answer = session.submit(Command(layer_id, "all", State.GERMINATED, "test", blueprint="bottleneck_mlp"))
    assert not answer.accepted
    assert reason in answer.reason


def test_nothing_is_left_out_where_all_can_grow():
    for model in (Steps(None), replaying.host()):
        session = session_of(model)
        session.step(next(toy.batches(0)))
        assert session._run.tracing.left_out == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_within_what_is_checkpointed_can_grow(reentrant):
    session = session_of(Steps(reentrant), layers=["body.1", "body.1.0", "stem"])
    session.step(next(toy.batches(0)))
    assert session._run.tracing.left_out == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_so_can_a_span_of_a_chain_that_is_checkpointed_as_one(reentrant):
    session = session_of(Steps(reentrant, as_one=True), layers=[SPAN, "body.1"])
    session.step(next(toy.batches(0)))
    assert session._run.tracing.left_out == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_backward_pass_runs_again_is_not_counted_again(reentrant):
    """Sizes of candidates go by these."""
    seen = []
    for model in (Steps(None), Steps(reentrant)):
        session = session_of(model, layers=["stem", "body.0", "body.2.0", "head"])
        session.step(next(toy.batches(0)))
        seen.append((session._run.tracing.rows, session._run.tracing.multiply_adds))
    assert seen[0] == seen[1]


def test_it_leaves_no_trace():
    trial = Recipe(growing(layers=None), model=replaying.host).build()
    run, batch = trial.run, next(toy.batches(0))
    with traced(run.model):  # what is known of the places by then stays
        run.model(batch[0])
    before, facts = tree_digest(run.captures.capture()), module_facts(run.model)
    events = len(trial.session.events)
    copies = [one.clone() for one in batch]
    dry_run(run, batch)
    assert tree_digest(run.captures.capture()) == before
    assert module_facts(run.model) == facts
    assert all(map(torch.equal, batch, copies))
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert len(trial.session.events) == events


def test_what_no_optimizer_holds_gets_no_gradient_from_it():
    model = esper.wrap(Steps(None), growing(layers=None), next(toy.batches(0))[0])
    held = (parameter for name, parameter in model.named_parameters() if "head" in name or "_esper" in name)
    optimizer = torch.optim.SGD(held, 0.05)
    session = esper.Session(model, optimizer, loss=toy.loss, evaluate=evaluate, planned_steps=120, policy=Script({}))
    dry_run(session._run, next(toy.batches(0)))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_another_each_time_says_nothing_of_places():
    calls: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return toy.loss(model, batch) * len(calls)

    session = session_of(Steps(None), loss)
    session.step(next(toy.batches(0)))
    assert session._run.tracing.left_out == {}


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0])
def test_a_loss_that_is_not_finite_or_flat_says_nothing_of_places(scale):
    session = session_of(Steps(None), lambda model, batch: toy.loss(model, batch) * scale)
    session.step(next(toy.batches(0)))
    assert session._run.tracing.left_out == {}


def test_a_run_that_never_grows_is_not_tried():
    calls: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return toy.loss(model, batch)

    session = session_of(Steps(True), loss, max_rounds=0)
    session.step(next(toy.batches(0)))
    assert len(calls) == 1


def test_what_was_left_out_is_known_after_resuming(tmp_path):
    session = session_of(Steps(True))
    session.step(next(toy.batches(0)))
    session.save(tmp_path)
    again = session_of(Steps(True))
    again.load(tmp_path)
    assert again._run.tracing.left_out == session._run.tracing.left_out != {}
    again.step(next(toy.batches(1)))
    assert notes(again) == notes(session)


def test_a_loop_of_ones_own_is_told_after_its_first_step():
    model = esper.wrap(Steps(True), growing(layers=None), next(toy.batches(0))[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def train_step(batch: Any) -> Tensor:
        loss = toy.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    session = esper.Session(model, optimizer, train_step=train_step, evaluate=evaluate, planned_steps=120)
    batch = next(toy.batches(0))
    loss = train_step(batch)
    weights = [parameter.clone() for parameter in model.parameters()]
    session.after_step(batch, loss)
    span, colony = notes(session)
    assert "no gradient reaches a graft there" in span
    assert "'*'; the step fails with a graft there" in colony
    assert "Checkpoint with use_reentrant=False" in colony
    assert all(map(torch.equal, model.parameters(), weights))
