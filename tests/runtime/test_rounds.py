"""A round: the run is the twin, candidates replay it, the best is adopted, and nothing else changes."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.host.wrapping import host_state_dict
from esper.runtime.state.random_state import random_state
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest

ARM = "round1/model/bottleneck_mlp"


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


def at_the_end_of_its_window(recipe: Recipe, **session: Any) -> Trial:
    """A trial whose arms are about to run; nobody runs them."""
    trial = recipe.build(**session)
    trial.rounds.judge = lambda: None
    return trial.train_until(lambda trial: trial.rounds.is_due)


def momentum(parameters):
    return SGD(parameters, lr=0.1, momentum=0.9)


def one_cycle(optimizer, steps):
    return OneCycleLR(optimizer, 0.2, total_steps=steps + 1)


RECIPES = {
    "AdamW": Recipe(model=noisy_host),
    "a schedule that moves momentum too": Recipe(model=noisy_host, optimizer=momentum, scheduler=one_cycle),
    "accumulated gradients": Recipe(model=noisy_host, session={"accumulate": 3, "clip_grad_norm": 1.0}),
}


class TestTheTwinIsExact:
    """What an arm without a graft would end as is what the run is at the end of its window."""

    @staticmethod
    def replay(trial: Trial, settings: list[Any] | None = None) -> tuple[str, str]:
        """Digests of the run at the end of its window, and of the window trained once more from its start."""
        run, window = trial.run, trial.rounds.current
        run_ended = TestTheTwinIsExact.digest(trial)
        run.captures.restore(window.start)
        for batch, rates in zip(window.batches, settings or window.settings, strict=True):
            run.trainer.train(batch, replayed=(rates,))
            run.trainer.step += 1
        return run_ended, TestTheTwinIsExact.digest(trial)

    @staticmethod
    def digest(trial: Trial) -> str:
        body = trial.run.snapshots.body()
        body["optimizer"] = body["optimizer"]["state"]  # the run's scheduler has set the rates of the step to come
        body["model"] = {name: value for name, value in body["model"].items() if ".telemetry." not in name}
        del body["extra_state"]  # what is sensed begins anew at boundaries, of which a replay has none
        return tree_digest([body, random_state()])

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_replaying_the_window_ends_byte_identical_to_the_run(self, recipe):
        run, replayed = self.replay(at_the_end_of_its_window(RECIPES[recipe]))
        assert replayed == run

    def test_with_a_gradient_scaler(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=5)
        run, replayed = self.replay(at_the_end_of_its_window(Recipe(model=noisy_host), scaler=scaler))
        assert replayed == run

    @pytest.mark.parametrize("part", ["state.snapshot.restore_random_state", "training.optimizers.restore_optimizer"])
    def test_it_would_not_if_the_snapshot_forgot(self, monkeypatch, part):
        trial = at_the_end_of_its_window(Recipe(model=noisy_host))
        monkeypatch.setattr(f"esper.runtime.{part}", lambda *_: None)
        run, replayed = self.replay(trial)
        assert replayed != run

    @pytest.mark.parametrize("name", ["lr", "momentum"])
    def test_it_would_not_if_the_window_forgot_a_setting(self, name):
        trial = at_the_end_of_its_window(RECIPES["a schedule that moves momentum too"])
        forgetful = [
            [{key: value for key, value in group.items() if key != name} for group in groups]
            for groups in trial.rounds.current.settings
        ]
        run, replayed = self.replay(trial, forgetful)
        assert replayed != run


@pytest.fixture(scope="module")
def adopted() -> dict[str, Any]:
    """A trial right after its round, with what was noted on the way."""
    trial = Recipe(model=noisy_host).build()
    noted: dict[str, Any] = {"parameters": list(trial.model.parameters()), "states": set()}
    end = trial.rounds.end

    def note_and_end(window):
        noted.update(window=window, best=window.best["body"], run=window.run)
        noted["before"] = trial.run.snapshots.optimizer_settings(), trial.run.snapshots.clock()
        end(window)

    trial.rounds.end = note_and_end

    def is_over(trial: Trial) -> bool:
        if trial.rounds.current is not None:
            noted["states"].add(trial.state())
        return bool(trial.events("round_ended"))

    return noted | {"trial": trial.train_until(is_over)}


class TestAdoption:
    """The winner's bytes go into the run; all else stays the run's."""

    def test_the_run_has_the_winners_bytes(self, adopted):
        now, best = adopted["trial"].run.snapshots.body(), adopted["best"]
        for name in best["model"]:
            if ".state." not in name:
                assert torch.equal(now["model"][name], best["model"][name]), name
        assert tree_digest(now["optimizer"]["state"]) == tree_digest(best["optimizer"]["state"])
        assert now["topology"] == best["topology"]

    def test_the_graft_is_live_and_trained(self, adopted):
        assert adopted["trial"].state() is State.FINE_TUNING
        assert adopted["trial"].run.places[""].arena.updates.max() > 0

    def test_parameters_keep_their_identity(self, adopted):
        trial = adopted["trial"]
        held = [parameter for group in trial.optimizer.param_groups for parameter in group["params"]]
        for before, now, in_optimizer in zip(adopted["parameters"], trial.model.parameters(), held, strict=True):
            assert now is before
            assert in_optimizer is before

    def test_rates_scheduler_and_random_streams_are_the_runs(self, adopted):
        settings, clock = adopted["before"]
        snapshots = adopted["trial"].run.snapshots
        assert snapshots.optimizer_settings() == settings == adopted["run"]["body"]["optimizer"]["param_groups"]
        assert tree_digest(snapshots.clock()) == tree_digest(clock)
        assert settings != adopted["best"]["optimizer"]["param_groups"]

    def test_the_run_showed_a_waiting_seed_all_the_while(self, adopted):
        assert adopted["states"] == {State.GERMINATED}

    def test_the_audit_log_tells_the_arms_transitions_by_the_arms_name(self, adopted):
        told = [(event["source"], event["target"], event["arm"]) for event in adopted["trial"].events("transition")]
        assert told == [
            ("DORMANT", "GERMINATED", None),
            ("GERMINATED", "TRAINING", ARM),
            ("TRAINING", "GRAFTING", ARM),
            ("GRAFTING", "STABILIZATION", ARM),
            ("STABILIZATION", "EVALUATING", ARM),
            ("EVALUATING", "FINE_TUNING", None),
        ]


def test_a_session_goes_on_after_an_adoption_and_keeps_what_it_grew():
    trial = Recipe().build().train()
    assert trial.events("round_ended")[0]["adopted"]["layer_id"] == ""
    trial.session.finish()
    (report,) = trial.session.field_reports
    assert report.outcome == "FOSSILIZED"
    states = ["TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "twin", "FINE_TUNING", "keep", "FOSSILIZED"]
    assert list(report.gates) == states
    assert report.gates["STABILIZATION"] == {"is_finite": True, "alpha": 1.0}
    assert trial.state() is State.DORMANT


def test_losers_are_culled_and_sleep_again_after_their_embargo():
    recipe = Recipe(growing(layers=["", "2", "0:2"], embargo_epochs=2), policy=Script({1: ["", "2", "0:2"]}))
    trial = recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))
    winner = trial.events("round_ended")[0]["adopted"]["layer_id"]
    losers = [layer_id for layer_id in ("", "2", "0:2") if layer_id != winner]
    reports = {report.layer_id: report for report in trial.session.field_reports}
    assert {(reports[name].outcome, reports[name].reason) for name in losers} == {("CULLED", "lost_round")}
    trial.train(1)
    answer = trial.session.submit(Script({}).command(losers[0]))
    assert not answer.accepted
    assert "was culled. It rests for 2 epochs" in answer.reason
    states = [{trial.state(name) for name in losers} for _ in range(3) if trial.train(1)]
    assert states == [{State.CULLED}, {State.DORMANT}, {State.DORMANT}]


def test_the_best_of_several_winners_is_adopted():
    recipe = Recipe(growing(layers=["", "2", "0:2"]), policy=Script({1: ["", "2", "0:2"]}))
    trial = recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))
    arms = {event["arm"]: event for event in trial.events("arm_ended") if event["passed"]}
    assert len(arms) > 1
    best = min(arms.values(), key=lambda event: event["select_loss"])
    adopted = trial.events("round_ended")[0]["adopted"]["layer_id"] or "model"
    assert best["arm"] == f"round1/{adopted}/bottleneck_mlp"


class BreaksError(Exception):
    """Raised on purpose."""


def fails_in_arms(error: type[BaseException], at: int) -> Any:
    """A loss that raises ``error`` once, at the ``at``-th call that finds a live graft."""
    calls = itertools.count(1)

    def loss(model, batch) -> Tensor:
        if any(place.arena.live for place in model._esper) and next(calls) == at:
            raise error
        return toy.loss(model, batch)

    return loss


def test_an_error_in_an_arm_ends_the_round_and_leaves_the_run_as_it_was():
    trial = Recipe(model=noisy_host).build(loss=fails_in_arms(BreaksError, at=5))
    with pytest.raises(BreaksError):
        trial.train()
    assert trial.rounds.current is None
    (report,) = trial.session.field_reports
    assert (report.outcome, report.reason) == ("CANCELLED", "an arm failed: BreaksError()")
    twin = at_the_end_of_its_window(Recipe(model=noisy_host))
    assert tree_digest([host_state_dict(trial.model), random_state()]) != ""
    assert {k: v.tolist() for k, v in host_state_dict(trial.model).items()} == {
        k: v.tolist() for k, v in host_state_dict(twin.model).items()
    }
    assert trial.session.submit(Script({}).command("")).accepted is False  # CANCELLED until the boundary
    trial.session.after_epoch()
    assert trial.state() is State.DORMANT


def test_an_interrupted_round_is_taken_up_at_the_next_step_or_boundary():
    expected = Recipe(model=noisy_host).build().train()
    trial = Recipe(model=noisy_host).build(loss=fails_in_arms(KeyboardInterrupt, at=5))
    for epoch in range(trial.epochs):
        for batch in toy.batches(epoch):
            try:
                trial.session.step(batch)
            except KeyboardInterrupt:  # the step itself was done, only its arms were not
                assert trial.state() is State.GERMINATED
                refused = trial.session.submit(Command("", "all", State.CANCELLED))
                assert not refused.accepted
        trial.session.after_epoch()
        assert trial.rounds.current is None or epoch < 4
    assert trial.digest() == expected.digest()


def test_a_candidate_that_was_taken_back_in_the_window_has_no_arm():
    recipe = Recipe(growing(layers=["", "2"]), policy=Script({1: ["", "2"]}))
    trial = recipe.build().train_until(lambda trial: trial.session.step_count == 25)
    assert trial.session.submit(Command("", "all", State.CANCELLED)).accepted
    for batch in itertools.islice(toy.batches(2), 5, None):
        trial.session.step(batch)
    trial.session.after_epoch()
    trial.train(4)
    assert [event["arm"] for event in trial.events("arm_ended")] == ["round1/2/bottleneck_mlp"]


def test_a_round_without_candidates_ends_at_once():
    trial = Recipe().build().train_until(lambda trial: trial.session.step_count == 25)
    assert trial.session.submit(Command("", "all", State.CANCELLED)).accepted
    trial.session.step(next(toy.batches(0)))
    assert trial.rounds.current is None
    assert trial.events("round_ended")[0]["reason"] == "no candidate is left"
    assert trial.run.snapshots.body()["topology"][""].count("lifecycle") == 0


def memorising(*, falls: bool, rises: bool, config: esper.GrowthConfig | None = None) -> Trial:
    """A trial after its round, in whose window training loss falls by more than a quarter, and held-out loss rises."""

    def scaled(model, batch):
        return toy.loss(model, batch) * (0.9 ** built[0].session.step_count if falls else 1.0)

    def evaluate(model):
        step = built[0].session.step_count if built else 0
        result = toy.evaluate(model)
        return esper.Evaluation(result.losses + (step if rises else 0.0), result.correct)

    built: list[Trial] = []
    built.append(Recipe(config or growing()).build(loss=scaled, evaluate=evaluate))
    return built[0].train_until(lambda trial: bool(trial.events("round_ended")))


def test_a_run_that_memorises_its_samples_in_the_window_tries_no_arm():
    trial = memorising(falls=True, rises=True)
    (end,) = trial.events("round_ended")
    (report,) = trial.session.field_reports
    assert (end["adopted"], end["reason"]) == (None, "the run memorises its samples")
    assert (report.outcome, report.reason) == ("CANCELLED", "not tried: the run memorises its samples")
    assert trial.run.books.arm_flops == trial.run.books.judging_flops == 0


@pytest.mark.parametrize(("falls", "rises"), [(True, False), (False, True), (False, False)])
def test_arms_run_where_only_one_of_the_curves_says_that_it_memorises(falls, rises):
    assert memorising(falls=falls, rises=rises).events("arm_ended")


def test_a_seed_that_has_trained_in_isolation_is_not_tried_either():
    config = growing(objective="reconstruction")
    (report,) = memorising(falls=True, rises=True, config=config).session.field_reports
    assert (report.outcome, report.reason) == ("CANCELLED", "not tried: the run memorises its samples")


def test_a_window_without_a_boundary_in_it_cannot_tell():
    config = growing(round_fraction=1 / 12)
    assert memorising(falls=True, rises=True, config=config).events("arm_ended")


def test_a_seed_germinated_in_the_window_survives_an_adoption_and_gets_its_own_round():
    recipe = Recipe(growing(layers=["", "2"], keep_looks=(0.95,)))
    trial = recipe.build().train_until(lambda trial: trial.session.step_count == 25)
    assert trial.session.submit(Script({}).command("2")).accepted
    for batch in itertools.islice(toy.batches(2), 5, None):
        trial.session.step(batch)
    trial.session.after_epoch()
    trial.train()
    assert trial.events("round_ended")[0]["adopted"]["layer_id"] == ""
    assert [event["arm"] for event in trial.events("arm_ended")] == [ARM, "round2/2/bottleneck_mlp"]
    trial.session.finish()
    assert len(trial.session.field_reports) == 2


def test_arms_of_a_second_round_train_the_graft_of_the_first_along():
    recipe = Recipe(growing(layers=["", "2"], round_fraction=0.2), policy=Script({1: [""], 6: ["2"]}, hidden=3))
    trial = recipe.build().train_until(lambda trial: len(trial.events("round_begun")) == 2)
    before, seen = trial.live().clone(), []
    verdict = trial.rounds.arms.verdict

    def note(run, one):
        seen.append((trial.live().clone(), trial.state(), trial.state("2")))
        return verdict(run, one)

    trial.rounds.arms.verdict = note
    trial.train(4)
    ((in_arm, first, second),) = seen
    assert (first, second) == (State.FINE_TUNING, State.EVALUATING)
    assert not torch.equal(in_arm, before)
    trial.train()
    trial.session.finish()
    assert all(len(place.arena.live) == 0 for place in trial.run.places.values())


def test_a_round_ends_when_another_graft_is_taken_out_meanwhile():
    """Its twin would no longer be the run without the candidate."""
    recipe = Recipe(growing(layers=["", "2"], round_fraction=0.2), policy=Script({1: [""], 6: ["2"]}))
    trial = recipe.build().train_until(lambda trial: len(trial.events("round_begun")) == 2)
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    trial.session.step(next(toy.batches(0)))
    assert trial.rounds.current is None
    assert trial.events("round_ended")[1]["reason"] == "another graft was removed during the round"
    assert trial.session.field_reports[-1].outcome == "CANCELLED"


def test_no_round_begins_while_a_graft_is_blended_out():
    config = growing(layers=["", "2"], round_fraction=0.2, ramp_fraction=0.1, patience_after_cull=1)
    trial = Recipe(config, policy=Script({1: [""], 6: ["2"]})).build()
    trial.train_until(lambda trial: trial.session.epoch == 5)
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    trial.train(1)
    assert trial.keeping.is_removing
    assert len(trial.events("round_begun")) == 1
    assert not any(event["layer_id"] == "2" for event in trial.events("transition"))


def test_no_round_begins_when_the_controller_has_just_had_a_graft_taken_out():
    """The capture would hold it, and every arm would bring it back."""

    class Replaces(Script):
        def decide(self, observation):
            if observation.epoch == 6:
                return [Command("", "all", State.CULLED, "replaced"), self.command("2")]
            return super().decide(observation)

    config = growing(layers=["", "2"], round_fraction=0.2, gate_z=1e-4, keep_looks=(0.95,))
    trial = Recipe(config, policy=Replaces({1: [""]})).build().train(6)
    assert (trial.state(""), trial.state("2")) == (State.CULLED, State.GERMINATED)
    assert trial.rounds.current is None
    trial.train_until(lambda trial: trial.rounds.current is not None)
    assert trial.rounds.current.start["body"]["topology"][""] == json.dumps(trial.run.places[""].topology())
    assert not trial.run.places[""].is_growing


def test_a_graft_passes_the_gate_by_its_own_alpha_not_by_a_neighbours():
    """Its neighbour is adopted and full; the strategy holds the graft at its first step."""

    class Second(Script):
        def decide(self, observation):
            commands = super().decide(observation)
            return [replace(one, strategy="drift_controlled") if one.seed_id == 1 else one for one in commands]

    config = growing(layers={"0": 2}, round_fraction=0.2, gate_z=1e-4, keep_looks=(0.95,), drift_threshold=1e-9)
    trial = Recipe(config, policy=Second({1: [("0", 0)], 6: [("0", 1)]})).build().train(9)
    assert trial.state("0", 0) is State.FINE_TUNING
    assert len(trial.events("arm_ended")) == 2
    reached = [event["target"] for event in trial.events("transition") if event["seed_id"] == 1 and event["arm"]]
    assert reached == ["TRAINING", "GRAFTING"]
    assert "alpha is" in trial.events("refused")[0]["reason"]


def test_a_metric_that_the_twin_has_and_the_arm_has_not_is_missing():
    def evaluate(model):
        result = toy.evaluate(model)
        return esper.Evaluation(result.losses, None if trial and trial[0].run.arm else result.correct)

    trial: list[Trial] = []
    trial.append(Recipe().build(evaluate=evaluate))
    trial[0].train(6)
    (arm,) = trial[0].events("arm_ended")
    assert arm["twin_z"] > 2.33
    assert (arm["passed"], arm["has_metric"], arm["metric_gain"]) == (False, True, None)


def test_hand_germinated_seeds_of_one_layer_are_candidates_one_by_one():
    recipe = Recipe(growing(layers={"2": 3}), policy=Script({1: [("2", 0), ("2", 2)]}))
    trial = recipe.build().train_until(lambda trial: bool(trial.events("round_ended")))
    assert len(trial.events("arm_ended")) == 2
    states = [trial.state("2", seed) for seed in range(3)]
    assert states[1] is State.DORMANT
    assert sum(state in LIVE for state in states) <= 1


def test_rounds_of_runs_without_epochs_begin_and_end_at_every_n_steps():
    trial = Recipe(growing(boundary_steps=12), policy=Script({0: [""]})).build()
    for epoch in range(trial.epochs):
        for batch in toy.batches(epoch):
            trial.session.step(batch)
    trial.session.finish()
    assert [event["step"] for event in trial.events("epoch")] == list(range(12, 121, 12))
    assert trial.events("round_begun")[0]["step"] == 12
    assert trial.events("round_ended")[0]["step"] == 52


@pytest.mark.parametrize("optimizer", [lambda p: AdamW(p, lr=torch.tensor(0.03)), lambda p: AdamW(p, 0.03, fused=True)])
def test_learning_rates_may_be_tensors_and_optimizers_fused(optimizer):
    trial = Recipe(optimizer=optimizer).build()
    rate = trial.optimizer.param_groups[0]["lr"]
    trial.train()
    trial.session.finish()
    assert trial.session.field_reports[0].outcome == "FOSSILIZED"
    assert isinstance(trial.optimizer.param_groups[0]["lr"], type(rate))


def test_arms_replay_learning_rates_that_are_whole_numbers():
    trial = Recipe(scheduler=None, optimizer=lambda parameters: SGD(parameters, lr=0.5)).build()
    used: dict[bool, list[float]] = {True: [], False: []}
    trial.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used[trial.run.arm is not None].append(optimizer.param_groups[0]["lr"])
    )
    trial.train(1)
    window = [1 if step < 20 else 0.5 for step in range(40)]
    for epoch in range(4):
        for index, batch in enumerate(toy.batches(1 + epoch)):
            trial.optimizer.param_groups[0]["lr"] = window[10 * epoch + index]
            trial.session.step(batch)
        trial.session.after_epoch()
    assert used[True] == window


def test_esper_is_out_of_the_optimizer_after_finish():
    trial = Recipe().build().train()
    trial.session.finish()
    assert not trial.optimizer._optimizer_step_pre_hooks
    with pytest.raises(esper.ConfigError, match="finished"):
        trial.session.step(next(toy.batches(0)))


@pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning",
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning",
)
def test_a_compiled_run_grows_as_the_eager_one():
    """To the byte, with a backend that rounds as eager mode does; all structures of a round are traced."""

    def grown(backend: str | None) -> str:
        torch._dynamo.reset()
        compiled: list[Any] = []

        def loss(model, batch):
            if backend is not None and not compiled:
                compiled.append(torch.compile(model, backend=backend, fullgraph=True))
            return toy.loss(compiled[0] if compiled else model, batch)

        trial = Recipe().build(loss=loss).train()
        trial.session.finish()
        assert trial.session.field_reports[0].outcome == "FOSSILIZED"
        return trial.digest()

    assert grown("aot_eager") == grown(None)
