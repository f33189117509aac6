"""Whatever optimizer the user gives: the steps of grafts are seen, and all that it trains is captured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adamax, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from esper.runtime.training.optimizers import HostOptimizer
from tests.few import few
from tests.kasmina.growing import grow, mlp, place_of, wrapped
from tests.runtime import toy
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest


class Counting(AdamW):
    """The same update by another name."""


class Delegating(Optimizer):
    """As that of ``accelerate.prepare``: it never calls ``Optimizer.__init__``, and keeps nothing of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(
        lambda self: self.optimizer.param_groups, lambda self, value: setattr(self.optimizer, "param_groups", value)
    )
    state = property(lambda self: self.optimizer.state, lambda self, value: setattr(self.optimizer, "state", value))
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


class Lookahead(Delegating):
    """Every third step goes half of the way back to slow weights, which it keeps itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"] if p.numel()]
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        self.count += 1
        if self.count % 3 == 0:
            trained = [p for group in self.param_groups for p in group["params"] if p in self.state]
            for slow, fast in zip(self.slow, trained, strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)

    def state_dict(self):
        return {"inner": self.optimizer.state_dict(), "slow": self.slow, "count": self.count}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["inner"])
        self.slow, self.count = [slow.clone() for slow in state["slow"]], state["count"]


class SAM(Optimizer):
    """Sharpness-aware minimization: its two phases are called in place of ``step``."""

    def __init__(self, params, **settings):
        super().__init__(params, dict(rho=0.05, **settings))
        self.base = AdamW(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        found = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in found]).norm() + 1e-12
        for p in found:
            self.state[p]["moved"] = p.grad * (0.05 / norm)
            p.add_(self.state[p]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if "moved" in self.state[p]:
                    p.sub_(self.state[p].pop("moved"))
        self.base.step()
        self.zero_grad()


WRAPPERS: dict[str, Callable[[Any], Optimizer]] = {
    "a subclass": lambda parameters: Counting(parameters, lr=0.03),
    "a wrapper": lambda parameters: Delegating(AdamW(parameters, lr=0.03)),
    "wrappers of wrappers": lambda parameters: Delegating(Delegating(AdamW(parameters, lr=0.03))),
}


def looking_ahead(parameters: Any) -> Optimizer:
    return Lookahead(AdamW(parameters, lr=0.03))


def recipe(make: Callable[[Any], Optimizer] | None = None, **config: Any) -> Recipe:
    """A run that adopts a graft, by a constant learning rate."""
    options = {} if make is None else {"optimizer": make}
    return Recipe(growing(keep_looks=(0.95,), **config), scheduler=None, **options)


# What steps


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_same_update_in_other_clothes_is_the_same_run_to_the_byte(name):
    one, other = recipe().build().train(8), recipe(WRAPPERS[name]).build().train(8)
    assert one.events("round_ended")[0]["adopted"] is not None
    assert toy.timeless(one.session.events) == toy.timeless(other.session.events)
    assert one.run.books.alive[1].state is State.FINE_TUNING
    for (name, mine), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("point", few([7, 23, 75], [23]))
def test_what_a_wrapper_remembers_goes_with_the_run_and_is_resumed(point, tmp_path):
    look = recipe(looking_ahead)
    expected = whole(look)
    assert expected.events("round_ended")[0]["adopted"] is not None
    cut(look, lambda trial: trial.session.step_count == point, tmp_path)
    assert_equal(resume(look, tmp_path), expected)


def test_what_a_wrapper_remembers_goes_back_with_a_refused_arm():
    runs = [recipe(looking_ahead, gate_z=1e9, max_rounds=rounds).build().train() for rounds in (1, 0)]
    tried, bare = ({n: p for n, p in run.model.named_parameters() if "_esper" not in n} for run in runs)
    assert len(runs[0].events("arm_ended")) == 1
    assert all(torch.equal(tried[name], bare[name]) for name in bare)
    assert runs[0].optimizer.count == runs[1].optimizer.count == 120


def by_two_phases(directory: Any = None, **config: Any) -> Trial:
    """A session over a loop of one's own that never calls ``step`` of the optimizer that it was given."""
    model = esper.wrap(toy.host(), growing(keep_looks=(0.95,), **config))
    optimizer = SAM(model.parameters(), lr=0.03, weight_decay=0.1)

    def train_step(batch: Any) -> Tensor:
        loss = toy.loss(model, batch)
        loss.backward()
        optimizer.first_step()
        toy.loss(model, batch).backward()
        optimizer.second_step()
        return loss

    session = esper.Session(
        model, optimizer, train_step=train_step, evaluate=toy.evaluate, planned_steps=120, policy=Script({1: [""]})
    )
    trial = Trial(model, optimizer, session, 12)
    trial.session.step = lambda batch: session.after_step(batch, train_step(batch))
    return trial


def test_grafts_grow_behind_an_optimizer_of_two_phases():
    trial = by_two_phases().train(8)
    assert trial.events("round_ended")[0]["adopted"] is not None
    assert trial.run.trainer.peak_lr == 0.03


def test_a_run_by_two_phases_resumes_to_the_byte(tmp_path):
    expected = by_two_phases().train(3)
    expected.session.save(tmp_path)
    resumed = by_two_phases()
    resumed.session.load(tmp_path)
    assert resumed.train(5).digest() == expected.train(5).digest()


@pytest.mark.parametrize("is_hooked_where_it_steps", [True, False])
def test_a_frozen_graft_keeps_its_bytes_behind_two_phases(is_hooked_where_it_steps):
    """With a control: an optimizer whose steps are not seen moves it, by its decay of weights."""
    model = wrapped(mlp(6, 8, 11, 4), {"2": 4})
    place, optimizer = place_of(model, "2"), SAM(model.parameters(), lr=0.01, weight_decay=0.1)
    seen = HostOptimizer(optimizer, model, {}).stepping
    SlotOptimizer(places(model), seen if is_hooked_where_it_steps else optimizer, lambda: 0.01, 0.1)
    grow(place, 1, State.EVALUATING, hidden=3)
    grow(place, 2, hidden=3)
    frozen = place.arena.params_of(place.arena.grafts[1])
    before, weight = frozen.detach().clone(), model[2].weight.detach().clone()
    for _ in range(10):
        for phase in (optimizer.first_step, optimizer.second_step):
            model(torch.randn(16, 6)).square().mean().backward()
            phase()
    assert torch.equal(frozen, before) == is_hooked_where_it_steps
    assert not torch.equal(model[2].weight, weight)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (AdamW, True),
        (NAdam, True),
        (RAdam, True),
        (Adamax, True),
        (Counting, True),
        (type("PagedAdamW8bit", (SGD,), {}), True),
        (lambda parameters: Delegating(AdamW(parameters)), True),
        (SGD, False),
        (Adafactor, False),
        (type("Lion", (SGD,), {}), False),
        (lambda parameters: Delegating(SGD(parameters)), False),
    ],
)
def test_the_adam_family_is_known_by_kind_and_others_of_it_by_name(make, expected):
    model = toy.host()
    assert HostOptimizer(make(model.parameters()), model, {}).is_adam is expected


def test_an_optimizer_that_keeps_one_for_some_of_its_parameters_steps_itself():
    model = toy.host()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.of_the_head = AdamW(model[2].parameters())
    assert HostOptimizer(optimizer, model, {}).stepping is optimizer


class TestRefused:
    @staticmethod
    def session(optimizer: Callable[[Any], Optimizer], **arguments: Any) -> esper.Session:
        model = esper.wrap(toy.host(), growing())
        arguments = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 40} | arguments
        return esper.Session(model, optimizer(model.parameters()), **arguments)

    def test_a_wrapper_that_remembers_without_a_state_dict(self):
        class Forgetful(Optimizer):
            def __init__(self, inner):
                self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

        with pytest.raises(esper.ConfigError, match=r"Forgetful wraps AdamW, .*state_dict.*or give Session the AdamW"):
            self.session(lambda parameters: Forgetful(AdamW(parameters)))

    def test_one_whose_steps_cannot_be_seen(self):
        class Blind(Optimizer):
            def __init__(self, parameters):
                self.param_groups = [{"params": list(parameters), "lr": 0.1}]

        with pytest.raises(esper.ConfigError, match=r"Blind has not called torch.optim.Optimizer.__init__.*super"):
            self.session(Blind)

    @staticmethod
    def stepping_by(optimizer: Optimizer, model: nn.Module, every: int = 1) -> esper.Session:
        """After an epoch in which another optimizer than the session's has stepped."""
        session = esper.Session(
            model, AdamW(model.parameters()), train_step=lambda batch: 0.0, evaluate=toy.evaluate, planned_steps=40
        )
        for number, batch in enumerate(toy.batches(0)):
            toy.loss(model, batch).backward()
            if (number + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
            session.after_step(batch, 0.0)
        return session

    def test_one_that_never_steps_while_parameters_move_is_refused_before_anything_grows(self):
        model = esper.wrap(toy.host(), growing())
        session = self.stepping_by(SGD(model.parameters(), lr=0.1), model)
        with pytest.raises(esper.ConfigError, match=r"step of AdamW was never called.*whose step\(\) your code calls"):
            session.after_epoch()

    def test_one_that_still_accumulates_at_the_end_of_an_epoch_is_not(self):
        """The control."""
        model = esper.wrap(toy.host(), growing())
        self.stepping_by(SGD(model.parameters(), lr=0.1), model, every=11).after_epoch()

    def test_and_so_is_one_before_whose_first_step_something_was_planted(self):
        """Which is no step of anybody."""
        session = self.session(AdamW)
        session.after_epoch()
        session.germinate("", "all")
        session.after_epoch()
        session.after_epoch()


# What it holds


class Scaled(nn.Module):
    """A criterion with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]) * self.scale, batch[1])


class Holder:
    """Captures a module's parameters without being a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        return dict(self._module.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state)


def with_criterion(extra: Callable[[Scaled], dict[str, Any]] | None, **session: Any) -> tuple[Trial, Scaled]:
    criterion = Scaled()
    config = growing(keep_looks=(0.95,), gate_z=session.pop("gate_z", 2.33))
    model = esper.wrap(toy.host(), config)
    optimizer = AdamW([*model.parameters(), criterion.scale], lr=0.03)
    arguments = {"loss": criterion, "evaluate": toy.evaluate, "planned_steps": 120, "policy": Script({1: [""]})}
    arguments |= {"extra": None if extra is None else extra(criterion)} | session
    return Trial(model, optimizer, esper.Session(model, optimizer, **arguments), 12), criterion


CAPTURED: dict[str, Callable[[Scaled], dict[str, Any]]] = {
    "a module": lambda criterion: {"criterion": criterion},
    "an object": lambda criterion: {"criterion": Holder(criterion)},
    "a list": lambda criterion: {"criterion": nn.ParameterList([criterion.scale])},
}


def test_parameters_that_nobody_captures_are_refused_with_the_remedy():
    with pytest.raises(esper.ConfigError, match=r"holds 1 parameter.*shapes: \(\).*extra=\{'criterion': criterion\}"):
        with_criterion(None)
    with pytest.raises(esper.ConfigError, match="neither in the model nor in extra"):
        with_criterion(lambda criterion: {"other": nn.Linear(2, 2)})


@pytest.mark.parametrize("extra", CAPTURED)
def test_a_parameter_in_extra_is_put_back_after_refused_arms(extra):
    tried, criterion = with_criterion(CAPTURED[extra], gate_z=1e9)
    assert len(tried.train().events("arm_ended")) == 1

    plain, alone = toy.host(), Scaled()
    optimizer = AdamW([*plain.parameters(), alone.scale], lr=0.03)
    for epoch in range(12):
        for batch in toy.batches(epoch):
            optimizer.zero_grad()
            alone(plain, batch).backward()
            optimizer.step()
    assert torch.equal(criterion.scale, alone.scale)
    assert torch.equal(tried.model[0].weight, plain[0].weight)


@pytest.mark.parametrize(
    ("extra", "point"),
    few(
        [(extra, point) for extra in CAPTURED for point in (2, 22, 66)],
        [("a module", 22), ("an object", 66), ("a list", 2)],
    ),
)
def test_gradients_of_extra_are_resumed_in_the_middle_of_an_accumulation(extra, point, tmp_path):
    expected, criterion = with_criterion(CAPTURED[extra], accumulate=4)
    expected.train_until(lambda trial: trial.session.step_count == point)
    assert criterion.scale.grad is not None
    expected.session.save(tmp_path)
    resumed, other = with_criterion(CAPTURED[extra], accumulate=4)
    resumed.session.load(tmp_path)
    assert torch.equal(other.scale.grad, criterion.scale.grad)
    for trial in (expected, resumed):
        for batch in list(toy.batches(20)):
            trial.session.step(batch)
    assert torch.equal(other.scale, criterion.scale)
    assert resumed.digest() == expected.digest()


def test_the_first_update_of_a_parameter_in_extra_is_the_mean_of_the_accumulated_gradients():
    trial, criterion = with_criterion(CAPTURED["a module"], accumulate=4)
    before = {"scale": criterion.scale.detach().clone()}
    batches = list(toy.batches(0))[:4]
    wanted = sum(
        torch.autograd.grad(torch.func.functional_call(criterion, {"scale": one}, (trial.model, batch)), one)[0]
        for batch in batches
        for one in [before["scale"].clone().requires_grad_()]
    )
    seen = []
    trial.optimizer.register_step_pre_hook(lambda *_: seen.append(criterion.scale.grad.clone()))
    for batch in batches:
        trial.session.step(batch)
    torch.testing.assert_close(seen[-1], wanted / 4)


def test_clipping_is_by_the_gradients_of_the_model_alone():
    trial, criterion = with_criterion(CAPTURED["a module"], clip_grad_norm=1e-6)
    seen = []
    trial.optimizer.register_step_pre_hook(lambda *_: seen.append(criterion.scale.grad.clone()))
    trial.session.step(next(toy.batches(0)))
    assert float(seen[-1].abs()) > 1e-3


# Groups that come later


def with_late_bias(**options: Any) -> Trial:
    """The bias of the head is in no parameter group until somebody adds it."""
    settings = {"keep_looks": (0.95,)} | options.pop("settings", {})
    model = esper.wrap(toy.host(), growing(**settings))
    optimizer = AdamW([p for name, p in model.named_parameters() if name != "2.bias"], lr=0.03)
    policy = options.pop("policy", Script({1: [""]}))
    if "scheduler" in options:
        options["scheduler"] = options["scheduler"](optimizer)
    session = esper.Session(
        model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=120, policy=policy, **options
    )
    return Trial(model, optimizer, session, 12)


def add_bias(trial: Trial) -> None:
    trial.optimizer.add_param_group({"params": [trial.model[2].bias], "lr": 0.001})


def test_a_group_that_is_added_in_the_window_of_a_round_ends_it_and_the_run_goes_on():
    trial = with_late_bias().train_until(lambda trial: trial.session.step_count == 23)
    add_bias(trial)
    trial.train()
    (ended,) = trial.events("round_ended")
    assert (ended["adopted"], ended["step"]) == (None, 24)
    assert "parameter groups" in ended["reason"]
    assert trial.events("arm_ended") == []
    trial.session.finish()
    assert [(one.outcome, one.reason) for one in trial.session.field_reports] == [("CANCELLED", ended["reason"])]


def test_a_group_that_is_added_before_the_window_or_after_it_ends_nothing():
    """The control."""
    for step in (5, 62):
        trial = with_late_bias().train_until(lambda trial, step=step: trial.session.step_count == step)
        add_bias(trial)
        trial.train()
        assert "parameter groups" not in trial.events("round_ended")[0]["reason"]
        assert len(trial.events("arm_ended")) == 1


def test_a_group_that_is_added_in_a_live_trial_ends_it():
    policy = Script({1: [""]}, trial="live")
    trial = with_late_bias(policy=policy, settings={"round_fraction": 0.2, "incubation_fraction": 0.05}).train(3)
    assert trial.growth.trials.current.window is not None
    add_bias(trial)
    trial.train()
    (ended,) = trial.events("trial_ended")
    assert "parameter groups" in ended["reason"]
    trial.session.finish()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_rollback_keeps_a_group_that_was_added_since_as_it_is(on_disk, tmp_path):
    trial = with_late_bias(policy=Script({}), directory=tmp_path if on_disk else None).train(2)
    weight, bias = trial.model[0].weight.detach().clone(), trial.model[2].bias.detach().clone()
    add_bias(trial)
    for batch in list(toy.batches(5))[:4]:
        trial.session.step(batch)
    average = trial.optimizer.state[trial.model[2].bias]["exp_avg"].clone()
    assert trial.session.rollback().accepted
    assert torch.equal(trial.model[0].weight, weight)
    assert torch.equal(trial.model[2].bias, bias)
    assert [group["lr"] for group in trial.optimizer.param_groups] == [0.03, 0.001]
    assert torch.equal(trial.optimizer.state[trial.model[2].bias]["exp_avg"], average)
    trial.train(1)
    assert not torch.equal(trial.model[2].bias, bias)


def test_a_rollback_keeps_what_the_scheduler_has_for_a_group_that_was_added_since():
    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 0.99**step)

    trial = with_late_bias(policy=Script({}), scheduler=schedule).train(2)
    add_bias(trial)
    scheduler = trial.run.trainer.scheduler
    scheduler.base_lrs.append(0.001)
    scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
    trial.train(1)
    for batch in list(toy.batches(5))[:4]:
        trial.session.step(batch)
    trial.recovery.good.pop()
    assert trial.session.rollback().accepted
    assert scheduler.base_lrs == [0.03, 0.001]
    trial.train(1)
    assert [group["lr"] for group in trial.optimizer.param_groups] == scheduler.get_last_lr()


def test_a_run_falls_back_to_before_a_group_was_added_and_keeps_it():
    trial = with_late_bias(settings={"patience_after_cull": 1}).train(7)
    assert trial.state() is State.FINE_TUNING
    add_bias(trial)
    trial.train(1)
    trial.recovery.fallbacks[0] |= {"select_loss": 0.0, "select_metric": 2.0}
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    trial.train()
    assert [event["recovered"] for event in trial.events("recovery")] == [False]
    assert [group["lr"] for group in trial.optimizer.param_groups] == [0.03, 0.001]


def test_a_group_of_parameters_that_nobody_captures_is_refused_before_it_steps():
    trial = with_late_bias().train(1)
    trial.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    before = trial.model[0].weight.detach().clone()
    with pytest.raises(esper.ConfigError, match="neither in the model nor in extra"):
        trial.session.step(next(toy.batches(1)))
    assert torch.equal(trial.model[0].weight, before)


def test_a_checkpoint_from_before_a_group_was_added_is_refused(tmp_path):
    trial = with_late_bias().train(1)
    trial.session.save(tmp_path)
    add_bias(trial)
    with pytest.raises(esper.CheckpointError, match="only this run has the parameter group '1'"):
        trial.session.load(tmp_path)


# One session at a time


class TestASessionThatIsBuiltLater:
    @staticmethod
    def build(model: nn.Module, optimizer: Optimizer, **options: Any) -> Trial:
        arguments = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 120, "policy": Script({1: [""]})}
        return Trial(model, optimizer, esper.Session(model, optimizer, **arguments | options), 12)

    def test_on_the_same_objects_trains_as_if_it_were_the_first(self):
        """With re-warming, which would lift rates twice."""
        digests = set()
        for count in (1, 3):
            model = esper.wrap(toy.host(), growing(keep_looks=(0.95,), rewarm=0.5, peak_lr=0.03))
            optimizer = AdamW(model.parameters(), lr=0.003)
            trials = [self.build(model, optimizer) for _ in range(count)]
            digests.add(tree_digest(trials[-1].train(8).run.snapshots.body()["model"]))
        assert len(digests) == 1

    @pytest.mark.parametrize("shares", ["the model", "the optimizer"])
    def test_takes_over_and_the_earlier_one_can_go_on_no_more(self, shares, tmp_path):
        one, other = (esper.wrap(toy.host(), growing()) for _ in range(2))
        optimizer = AdamW([*one.parameters(), *other.parameters()])
        earlier = self.build(one, optimizer, extra={"other": Holder(other)})
        earlier.session.save(tmp_path)
        if shares == "the model":
            self.build(one, AdamW(one.parameters()))
        else:
            self.build(other, optimizer, extra={"other": Holder(one)})
        for call in (
            lambda: earlier.session.step(next(toy.batches(0))),
            earlier.session.after_epoch,
            earlier.session.finish,
            earlier.session.rollback,
            lambda: earlier.session.rechunk("", 1),
            lambda: earlier.session.germinate("", "all"),
            lambda: earlier.session.load(tmp_path),
        ):
            with pytest.raises(esper.ConfigError, match=r"Another Session was built .* has taken over"):
                call()

    def test_but_was_refused_leaves_the_earlier_one_in_charge(self):
        model = esper.wrap(toy.host(), growing())
        optimizer = AdamW(model.parameters())
        earlier = self.build(model, optimizer)
        with pytest.raises(esper.EvaluationError):
            self.build(model, optimizer, evaluate=lambda model: 0.0)
        earlier.train(1)

    def test_on_other_objects_disturbs_nobody(self):
        """The control."""
        first = recipe().build()
        recipe().build()
        first.train(1)
