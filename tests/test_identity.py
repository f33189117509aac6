"""Until a graft is blended in, training with Esper is training without it, to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.layer import KasminaLayer
from esper.kasmina.places.lifecycle import Birth, transition
from esper.runtime.state.random_state import random_state
from tests.few import few
from tests.runtime import toy
from tests.tree_digest import tree_digest

STEPS = 50
Trace = dict[str, Any]
Forward = Callable[[Tensor], Tensor]


def host() -> nn.Module:
    return toy.host(dropout=0.3, batch_norm=True)


def wrapped(until: State) -> nn.Module:
    """The host with seeds in every layer, in spans and around the whole, all of them in one state."""
    model = esper.wrap(host(), esper.GrowthConfig(layers=["", "0", "4", "0:4"]))
    for number, place in enumerate(places(model), start=1):
        for target in (State.GERMINATED, State.TRAINING):
            if target <= until:
                command = Command(place.layer_id, "all", target, blueprint="bottleneck_mlp")
                transition(place, command, birth=Birth(number, 5) if target is State.GERMINATED else None)
    return model


def train(model: nn.Module, forward: Forward | None = None) -> Trace:
    """All that 50 steps of a plain loop with clipping show, step by step."""
    torch.manual_seed(1)
    optimizer = AdamW(model.parameters(), lr=0.03)
    trace: Trace = {}
    for step, (x, y) in enumerate(batches(STEPS)):
        logits = (forward or model)(x)
        nn.functional.cross_entropy(logits, y).backward()
        norm = clip_grad_norm_(model.parameters(), 0.5)
        note(trace, step, model, logits=logits, norm=norm)
        optimizer.step()
        optimizer.zero_grad()
    note(trace, STEPS, model)
    return trace


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for epoch in range(steps // toy.STEPS_PER_EPOCH) for batch in toy.batches(epoch)]


def note(trace: Trace, step: int, model: nn.Module, **values: Any) -> None:
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    seen = {
        **values,
        "grads": {name: grad for name, grad in grads.items() if "_esper" not in name or grad is not None},
        "tensors": dict(esper.host_state_dict(model)),
        "random": random_state(),
    }
    for name, value in seen.items():
        trace[f"{name} at step {step}"] = tree_digest(value)


def differences(one: Trace, other: Trace) -> list[str]:
    """Names of what is not equal to the bit."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


@pytest.mark.parametrize("state", [State.DORMANT, State.GERMINATED, State.TRAINING])
def test_seeds_before_grafting_change_no_output_gradient_buffer_random_draw_or_norm(state):
    assert differences(train(host()), train(wrapped(state))) == []


def test_seeds_before_grafting_change_nothing_in_a_compiled_model():
    torch._dynamo.reset()
    bare, carrier = host(), wrapped(State.DORMANT)
    expected = train(bare, torch.compile(bare, backend="aot_eager"))
    assert differences(expected, train(carrier, torch.compile(carrier, backend="aot_eager"))) == []


def adds_a_little(self, *args, **kwargs):
    return forward_of(self, *args, **kwargs) + 1e-7


def draws(self, *args, **kwargs):
    torch.rand(1)
    return forward_of(self, *args, **kwargs)


def draws_from_numpy(self, *args, **kwargs):
    np.random.rand()
    return forward_of(self, *args, **kwargs)


def leaves_zero_gradients(self, *args, **kwargs):
    output = forward_of(self, *args, **kwargs)
    return output + sum(0.0 * place.arena.slots.sum() for place in self._esper)


forward_of = KasminaLayer.forward


@pytest.mark.parametrize(
    ("fault", "what"),
    [(adds_a_little, "logits"), (draws, "random"), (draws_from_numpy, "random"), (leaves_zero_gradients, "grads")],
)
def test_the_comparison_sees_a_seed_that_is_not_the_identity(monkeypatch, fault, what):
    """The control of the tests above."""
    expected = train(host())
    model = wrapped(State.DORMANT)
    for kind in {type(module) for module in model.modules() if isinstance(module, KasminaLayer)}:
        monkeypatch.setattr(kind, "forward", fault)
    assert f"{what} at step 0" in differences(expected, train(model))


class Variant:
    """One way to train: as a plain PyTorch loop and as a session, from the same bytes on the same batches.

    Args:
        optimizer: built from parameters.
        scheduler: built from the optimizer and the steps; None has none.
        every: whether it is stepped with the optimizer or after every epoch.
        clip: norm to clip to.
        accumulate: batches per optimizer step.
        scaled: whether a gradient scaler is used.
        owns_loop: False trains by ``train_step`` and ``after_step``.
    """

    def __init__(
        self, optimizer, scheduler=CosineAnnealingLR, every="step", clip=0.5, accumulate=1, scaled=False, owns_loop=True
    ):
        self.make_optimizer, self.make_scheduler, self.every = optimizer, scheduler, every
        self.clip, self.accumulate, self.scaled, self.owns_loop = clip, accumulate, scaled, owns_loop

    def parts(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = self.make_optimizer(model.parameters())
        steps = EPOCHS * (toy.STEPS_PER_EPOCH // self.accumulate if self.every == "step" else 1)
        self.scheduler = self.make_scheduler(self.optimizer, steps) if self.make_scheduler else None
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7) if self.scaled else None

    def plain_step(self, index: int, batch: Any) -> Tensor:
        """Forward, backward, clip, optimizer, scheduler, as one would write them."""
        loss = toy.loss(self.model, batch)
        share = loss / self.accumulate if self.accumulate > 1 else loss
        (share if self.scaler is None else self.scaler.scale(share)).backward()
        if (index + 1) % self.accumulate:
            return loss
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        if self.scheduler is not None and self.every == "step":
            self.scheduler.step()
        return loss

    def plain(self) -> tuple[str, Trace]:
        """The bare run: digest of where it ends."""
        self.parts(host())
        trace: Trace = {}
        for index, batch in enumerate(batches(EPOCHS * toy.STEPS_PER_EPOCH)):
            note(trace, index, self.model, loss=self.plain_step(index, batch))
            if (index + 1) % toy.STEPS_PER_EPOCH == 0 and self.every == "epoch":
                self.scheduler.step()
        return self.digest(), trace

    def session(self, config: esper.GrowthConfig) -> tuple[str, Trace, esper.Session]:
        self.parts(esper.wrap(host(), config))
        arguments: dict[str, Any] = {"scheduler": self.scheduler, "scheduler_every": self.every, "scaler": self.scaler}
        if self.owns_loop:
            arguments |= {"loss": toy.loss, "clip_grad_norm": self.clip, "accumulate": self.accumulate}
        else:
            arguments |= {"train_step": lambda batch: self.plain_step(session.step_count, batch)}
        session = esper.Session(
            self.model,
            self.optimizer,
            evaluate=toy.evaluate,
            planned_steps=EPOCHS * toy.STEPS_PER_EPOCH,
            policy=toy.Script({1: ["", "0", "0:4"], 4: ["4", "0:4"]} if config.max_rounds else {}),
            **arguments,
        )
        trace: Trace = {}
        for index, batch in enumerate(batches(EPOCHS * toy.STEPS_PER_EPOCH)):
            if self.owns_loop:
                loss = session.step(batch)
            else:
                loss = self.plain_step(index, batch)
                session.after_step(batch, loss)
            note(trace, index, self.model, loss=loss)
            if (index + 1) % toy.STEPS_PER_EPOCH == 0:
                session.after_epoch()
        session.finish()
        return self.digest(), trace, session

    def digest(self) -> str:
        named = [pair for pair in self.model.named_parameters() if "_esper" not in pair[0]]
        optimizer = {name: self.optimizer.state[parameter] for name, parameter in named}
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return tree_digest([dict(esper.host_state_dict(self.model)), optimizer, scheduler, scaler, random_state()])


EPOCHS = 8


def adamw(parameters):
    return AdamW(parameters, lr=0.03)


def momentum(parameters):
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


VARIANTS = {
    "AdamW, cosine, clipping": lambda: Variant(adamw),
    "without a scheduler": lambda: Variant(adamw, scheduler=None, clip=None),
    "SGD with momentum": lambda: Variant(momentum),
    "a schedule of momentum": lambda: Variant(momentum, scheduler=lambda o, n: OneCycleLR(o, 0.2, total_steps=n + 1)),
    "a scheduler stepped per epoch": lambda: Variant(adamw, scheduler=lambda o, n: StepLR(o, 3), every="epoch"),
    "gradient accumulation": lambda: Variant(adamw, accumulate=2),
    "a gradient scaler": lambda: Variant(adamw, scaled=True),
    "a gradient scaler over accumulated gradients": lambda: Variant(adamw, scaled=True, accumulate=2),
    "a loop of one's own": lambda: Variant(adamw, owns_loop=False),
    "a loop of one's own, scaled and accumulated": lambda: Variant(adamw, owns_loop=False, scaled=True, accumulate=2),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_never_grows_is_the_bare_run(variant):
    bare, expected = VARIANTS[variant]().plain()
    ended, trace, _ = VARIANTS[variant]().session(toy.growing(layers=None, max_rounds=0))
    assert differences(expected, trace) == []
    assert ended == bare


@pytest.mark.parametrize(
    "variant",
    few(VARIANTS, ["AdamW, cosine, clipping", "a loop of one's own, scaled and accumulated"]),
)
def test_a_run_that_refused_all_candidates_ends_as_the_bare_run(variant):
    """Byte for byte, with arms in between that trained, drew random numbers and moved every state there is."""
    bare, _ = VARIANTS[variant]().plain()
    config = toy.growing(layers=["", "0", "4", "0:4"], gate_z=1e9, round_fraction=0.2, embargo_epochs=0)
    ended, _, session = VARIANTS[variant]().session(config)
    assert [report.outcome for report in session.field_reports] == ["CULLED"] * 5
    assert {report.reason for report in session.field_reports} == {"lost_round"}
    assert sum(event["event"] == "arm_ended" for event in session.events) == 5
    assert ended == bare


def test_a_refused_run_would_differ_if_arms_were_not_undone(monkeypatch):
    """The control of the test above: restoring all but the random streams is not enough."""
    bare, _ = VARIANTS["AdamW, cosine, clipping"]().plain()
    monkeypatch.setattr("esper.runtime.state.snapshot.restore_random_state", lambda state: None)
    ended, _, _ = VARIANTS["AdamW, cosine, clipping"]().session(toy.growing(layers=["", "0", "4", "0:4"], gate_z=1e9))
    assert ended != bare


def test_a_session_does_not_keep_a_compiled_model_from_being_compiled():
    """Counting FLOPs is done apart: torch never compiles again what once ran under its counter."""

    def ended(*, in_session: bool) -> str:
        torch._dynamo.reset()
        model = host()
        if in_session:
            esper.wrap(model, toy.growing(max_rounds=0))
        graphs: list[object] = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(model, backend=backend)
        optimizer = adamw(model.parameters())

        def loss(_, batch):
            return toy.loss(compiled, batch)

        session = None
        if in_session:
            session = esper.Session(model, optimizer, loss=loss, evaluate=toy.evaluate, planned_steps=STEPS)
        for batch in batches(STEPS):
            if session is not None:
                session.step(batch)
            else:
                loss(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert len(graphs) == 1
        return tree_digest(dict(esper.host_state_dict(model)))

    assert ended(in_session=True) == ended(in_session=False)
