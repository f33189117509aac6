"""Live trials: grafts grow in the run itself, and a run that refuses them has become its twin, to the byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.checkpoint import store
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import host_state_dict
from esper.kasmina.places.variation import Variation
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless
from tests.tree_digest import tree_digest

WINDOW = 0.2
"""Of 120 steps: GRAFTING lasts from one boundary to the third after it."""


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


def live(**settings: Any) -> esper.GrowthConfig:
    return growing(**{"round_fraction": WINDOW, "keep_looks": (0.95,), "layers": ["", "4"]} | settings)


def recipe(config: esper.GrowthConfig | None = None, **changes: Any) -> Recipe:
    return Recipe(config or live(), model=noisy_host, policy=changes.pop("policy", Script({})), **changes)


def germinated(config: esper.GrowthConfig | None = None, *places: str, **session: Any) -> Trial:
    """A run after its first epoch, in which seeds were germinated by hand."""
    trial = recipe(config).build(**session).train(1)
    for layer_id in places or ("",):
        assert trial.session.germinate(layer_id, "all", settings={"hidden": 8}).accepted
    return trial


def in_state(state: State, config: esper.GrowthConfig | None = None, *places: str) -> Trial:
    """A run at the first boundary at which the (first) seed is in a state."""
    trial = germinated(config, *places)
    while trial.state((places or ("",))[0]) is not state:
        trial.train(1)
    return trial


def host_digest(trial: Trial) -> str:
    optimizer = trial.optimizer.state_dict()["state"]
    return tree_digest([dict(host_state_dict(trial.model)), optimizer, trial.run.snapshots.clock()])


def outcomes(trial: Trial) -> list[tuple[str, str]]:
    return [(report.outcome, report.reason) for report in trial.session.field_reports]


def steps_by_target(trial: Trial) -> list[tuple[str, int]]:
    return [(event["target"], event["step"]) for event in trial.events("transition")]


class TestATrial:
    def test_passes_all_states_in_the_run_at_boundaries(self):
        trial = germinated().train(5)
        assert steps_by_target(trial) == [
            ("GERMINATED", 10),
            ("TRAINING", 20),
            ("GRAFTING", 20),
            ("STABILIZATION", 50),
            ("EVALUATING", 60),
            ("FINE_TUNING", 60),
        ]
        assert {event["arm"] for event in trial.events("transition")} == {None}
        trial.train()
        trial.session.finish()
        (report,) = trial.session.field_reports
        assert (report.outcome, report.trial, report.strategy) == ("FOSSILIZED", "live", "fixed_ramp")

    def test_trains_graft_and_host_while_alpha_rises_and_freezes_the_graft_after(self):
        trial = in_state(State.GRAFTING)
        alphas, grafts, hosts = [], [], []
        for epoch in range(3):
            for batch in toy.batches(epoch):
                trial.session.step(batch)
                alphas.append(float(trial.run.places[""].state.alpha))
                grafts.append(trial.live().clone())
                hosts.append(trial.model[0].weight.detach().clone())
            trial.session.after_epoch()
        assert alphas[:6] == pytest.approx([step / 6 for step in range(1, 7)])
        assert alphas[6:] == [1.0] * 24
        assert not torch.equal(grafts[-1], grafts[-2])
        assert not torch.equal(hosts[-1], hosts[-2])
        assert trial.state() is State.STABILIZATION
        trial.session.step(next(toy.batches(7)))
        assert torch.equal(trial.live(), grafts[-1])
        assert not torch.equal(trial.model[0].weight, hosts[-1])

    def test_that_wins_keeps_the_run_as_it_is(self):
        trial = in_state(State.STABILIZATION)
        for batch in toy.batches(5):
            trial.session.step(batch)
        before, graft = host_digest(trial), trial.live().clone()
        trial.session.after_epoch()
        assert trial.state() is State.FINE_TUNING
        assert host_digest(trial) == before
        assert torch.equal(trial.live(), graft)

    @pytest.mark.parametrize("session", [{}, {"accumulate": 4}, {"clip_grad_norm": 0.5}], ids=str)
    def test_that_loses_leaves_the_run_as_if_it_had_never_grown(self, session):
        """Its twin is trained on the same batches with the same rates: the run that never grew, to the byte."""
        trial = germinated(live(gate_z=1e9), **session).train()
        assert outcomes(trial) == [("CULLED", "lost to its twin")]
        assert not trial.run.places[""].is_growing
        bare = recipe(live(gate_z=1e9)).build(**session).train()
        assert host_digest(trial) == host_digest(bare)

    def test_would_be_seen_if_the_loser_left_a_trace(self, monkeypatch):
        """The control of the test above: a twin that replays other rates ends elsewhere."""
        from esper.runtime.trying import trials as module

        def replay_carelessly(run, window, payers):
            window.settings[window.arm_step] = window.settings[0]
            replay(run, window, payers)

        replay = module.replay_step
        monkeypatch.setattr(module, "replay_step", replay_carelessly)
        trial = germinated(live(gate_z=1e9)).train()
        bare = recipe(live(gate_z=1e9)).build().train()
        assert host_digest(trial) != host_digest(bare)

    def test_books_its_twin_as_an_arm(self):
        trial = germinated().train(5)
        books = trial.run.books
        (one,) = books.alive.values()
        (ended,) = trial.events("trial_ended")
        assert ended["steps"] == 40
        assert one.flops == books.arm_flops > 0
        bare = recipe().build().train(1).run.books.run_flops / 10
        assert books.arm_flops == 40 * bare

    def test_is_judged_on_the_gate_samples_and_says_so(self):
        trial = germinated().train(5)
        (ended,) = trial.events("trial_ended")
        (one,) = trial.run.books.alive.values()
        assert one.gates["twin"]["twin_z"] == ended["twin_z"] > 2.33
        assert ended["passed"]
        assert [adopted["layer_id"] for adopted in ended["adopted"]] == [""]

    def test_of_a_mere_offset_leaves_the_twin(self, monkeypatch):
        monkeypatch.setattr(Variation, "share", 0.04)
        trial = germinated(live()).train(5)
        (ended,) = trial.events("trial_ended")
        assert ended["twin_z"] > 2.33
        assert (ended["passed"], ended["reason"]) == (False, "variation is 0.04, below 0.05")
        assert outcomes(trial) == [("CULLED", "lost to its twin")]

    def test_that_is_removed_later_leaves_the_twin_to_go_back_to(self):
        trial = germinated().train(5)
        (fallback,) = trial.recovery.fallbacks
        assert trial.session.cancel("", "all").accepted
        fallback |= {"select_loss": -1.0, "select_metric": 2.0}
        trial.train_until(lambda trial: bool(trial.events("recovery")))
        assert trial.events("recovery")[0]["recovered"] is False
        for name, value in host_state_dict(trial.model).items():
            assert torch.equal(value, fallback["body"]["model"][name])


class TestSeveralGrafts:
    def test_that_wait_together_are_on_trial_together(self):
        trial = germinated(live(), "", "4").train(5)
        (begun,) = trial.events("trial_begun")
        assert [one["layer_id"] for one in begun["candidates"]] == ["", "4"]
        assert len(trial.events("trial_ended")) == 1
        assert trial.run.books.arm_flops == sum(
            [one.flops for one in trial.run.books.alive.values()] + [r.flops for r in trial.session.field_reports]
        )

    def test_a_passenger_is_vetoed_by_ablation(self):
        """Jointly they beat the twin, but the run is better without one of them."""
        trial = in_state(State.STABILIZATION, live(), "", "4")
        ablated = trial.run.evaluations.ablated

        def ablate(one):
            if one.layer_id == "":
                return ablated(one)
            result = trial.run.evaluations.measure()
            result.losses.sub_(torch.rand(len(result.losses), generator=torch.Generator().manual_seed(0)))
            return result

        trial.run.evaluations.ablated = ablate
        trial.train(1)
        trial.run.evaluations.ablated = ablated
        assert trial.events("trial_ended")[0]["passed"]
        assert (trial.state(""), trial.state("4")) == (State.FINE_TUNING, State.CULLED)
        assert float(trial.run.places["4"].state.alpha.max()) == 1.0  # it is blended out, not torn out
        trial.train(1)
        ((outcome, reason),) = outcomes(trial)
        assert outcome == "CULLED"
        assert "ablation_z" in reason

    def test_of_which_one_is_a_mere_offset_go_on_without_it(self, monkeypatch):
        share = Variation.share.fget
        monkeypatch.setattr(Variation, "share", property(lambda self: 0.04 if self.lifecycle == 2 else share(self)))
        trial = germinated(live(), "", "4").train(6)
        (ended,) = trial.events("trial_ended")
        assert ended["passed"]
        assert [one["layer_id"] for one in ended["adopted"]] == [""]
        assert outcomes(trial) == [("CULLED", "The gate to FINE_TUNING is shut: variation is 0.04, below 0.05.")]

    def test_ablation_alone_accepts_nobody(self):
        trial = germinated(live(gate_z=1e9), "", "4").train(5)
        assert outcomes(trial) == [("CULLED", "lost to its twin")] * 2

    def test_germinated_during_a_trial_wait_for_the_next(self):
        trial = in_state(State.GRAFTING)
        assert trial.session.germinate("4", "all", settings={"hidden": 4}).accepted
        trial.train(1)
        assert trial.state("4") is State.GERMINATED
        trial.train(5)
        assert [event["step"] for event in trial.events("trial_begun")] == [20, 70]

    def test_rounds_and_trials_take_turns(self):
        """One at a time, in the order in which the seeds germinated."""
        trial = recipe(live(embargo_epochs=0)).build().train(1)
        assert trial.session.submit(Script({}).command("4")).accepted
        assert trial.session.germinate("", "all", settings={"hidden": 4}).accepted
        trial.train()
        events = [
            event["event"] for event in trial.session.events if event["event"].endswith(("_begun", "round_ended"))
        ]
        assert events == ["round_begun", "round_ended", "trial_begun"]

    def test_of_which_one_is_cancelled_go_on_without_it(self):
        trial = in_state(State.GRAFTING, live(), "", "4")
        assert trial.session.cancel("4", "all").accepted
        trial.train(5)
        assert trial.state("") is State.FINE_TUNING
        assert outcomes(trial) == [("CANCELLED", "asked for")]

    @pytest.mark.parametrize("when", ["before a step", "before a boundary"])
    def test_another_graft_that_is_removed_meanwhile_ends_the_trial(self, when):
        """The twin would no longer be the run without those on trial."""
        trial = in_state(State.FINE_TUNING)
        assert trial.session.germinate("4", "all", settings={"hidden": 4}).accepted
        trial.train(2)
        assert trial.state("4") is State.GRAFTING
        assert trial.session.cancel("", "all").accepted
        if when == "before a boundary":
            trial.session.after_epoch()
            assert trial.growth.trials.current is None
        trial.train(1)
        assert trial.events("trial_ended")[1]["reason"] == "another graft was removed during the trial"
        assert {outcome for outcome, _ in outcomes(trial)} == {"CANCELLED"}
        assert trial.growth.trials.current is None


class TestByAblation:
    CONFIG = live(judge="ablation")

    def test_nothing_is_captured_or_remembered(self):
        trial = in_state(State.STABILIZATION, self.CONFIG)
        assert trial.growth.trials.current.window is None
        assert trial.recovery.fallbacks == []

    def test_the_graft_stays_if_the_run_is_worse_without_it(self):
        trial = germinated(self.CONFIG).train(5)
        assert trial.state() is State.FINE_TUNING
        (one,) = trial.run.books.alive.values()
        assert one.gates["FINE_TUNING"]["ablation_z"] > 2.33
        assert trial.run.books.arm_flops == 0

    def test_a_mere_offset_is_blended_out(self, monkeypatch):
        monkeypatch.setattr(Variation, "share", 0.04)
        trial = germinated(self.CONFIG).train(6)
        assert outcomes(trial) == [("CULLED", "The gate to FINE_TUNING is shut: variation is 0.04, below 0.05.")]

    def test_and_is_blended_out_if_not(self):
        trial = in_state(State.STABILIZATION, self.CONFIG)
        trial.run.evaluations.ablated = lambda one: trial.run.evaluations.measure()
        trial.train(1)
        assert trial.state() is State.CULLED
        assert float(trial.run.places[""].state.alpha) == 1.0
        trial.train(1)
        assert not trial.run.places[""].is_growing
        assert outcomes(trial)[0][0] == "CULLED"


class TestTimeouts:
    """No state between GERMINATED and EVALUATING holds a seed for ever."""

    def test_of_a_ramp_that_never_ends(self):
        """A host that drifts by more than a threshold of next to nothing pauses the clock in every step."""
        trial = recipe(live(timeout=0.25, drift_threshold=1e-12)).build().train(1)
        trial.session.germinate("", "all", strategy="drift_controlled", settings={"hidden": 8})
        trial.train(6)
        assert outcomes(trial) == [("CULLED", "timed_out")]
        assert steps_by_target(trial)[2:4] == [("GRAFTING", 20), ("CULLED", 60)]

    def test_leaves_those_alone_that_only_wait_for_it(self):
        trial = recipe(live(timeout=0.25, drift_threshold=1e-12)).build().train(1)
        trial.session.germinate("", "all", settings={"hidden": 8})
        trial.session.germinate("4", "all", strategy="drift_controlled", settings={"hidden": 4})
        trial.train(8)
        assert outcomes(trial) == [("CULLED", "timed_out")]
        assert trial.state("4") in (State.CULLED, State.DORMANT)
        assert trial.state("") is State.FINE_TUNING

    def test_of_a_seed_that_waits(self):
        trial = in_state(State.GRAFTING, live(timeout=0.25))
        trial.session.germinate("4", "all", settings={"hidden": 4})
        trial.run.books.alive[2].since_step = -100
        trial.train(1)
        assert outcomes(trial) == [("CULLED", "timed_out")]


@pytest.mark.parametrize(
    ("state", "objective"),
    [
        pytest.param(State.GERMINATED, "none", marks=pytest.mark.long),
        (State.TRAINING, "pseudo_residual"),
        (State.GRAFTING, "none"),
        pytest.param(State.STABILIZATION, "none", marks=pytest.mark.long),
        (State.FINE_TUNING, "none"),
    ],
)
def test_any_state_can_be_left_on_request(state, objective):
    """At once before the graft is blended in, by a blend-out later."""
    trial = in_state(state, live(objective=objective, incubation_fraction=0.15))
    is_live = trial.run.places[""].is_growing
    assert is_live == (state >= State.GRAFTING)
    assert trial.session.cancel("", "all").accepted
    assert bool(outcomes(trial)) != is_live
    trial.train(1)
    assert outcomes(trial) == [("CANCELLED", "asked for")]
    assert not trial.run.places[""].is_growing
    assert trial.state() is State.DORMANT
    assert trial.growth.trials.current is None
    trial.session.finish()


@pytest.mark.parametrize("objective", ["pseudo_residual", "reconstruction"])
class TestIsolatedTraining:
    """The graft learns beside the host, which is not moved by it."""

    @staticmethod
    def config(objective: str, **settings: Any) -> esper.GrowthConfig:
        return live(objective=objective, incubation_fraction=0.15, **settings)

    def test_lasts_its_share_of_the_steps_and_leaves_the_host_alone(self, objective):
        trial = in_state(State.TRAINING, self.config(objective)).train(1)
        bare = recipe().build().train(3)
        assert trial.state() is State.TRAINING
        assert host_digest(trial) == host_digest(bare)
        trial.train(1)
        assert trial.state() is State.GRAFTING
        (one,) = trial.run.books.alive.values()
        assert one.gates["incubation"]["heldout_samples"] > 0
        assert one.flops == trial.run.books.arm_flops > 0

    def test_of_a_refused_trial_leaves_no_trace(self, objective):
        trial = germinated(self.config(objective, gate_z=1e9)).train()
        bare = recipe().build().train()
        assert outcomes(trial) == [("CULLED", "lost to its twin")]
        assert host_digest(trial) == host_digest(bare)

    def test_of_candidates_of_a_round_fills_the_window(self, objective):
        config = growing(objective=objective, layers=["", "4"], gate_z=1e9)
        trial = recipe(config, policy=Script({1: ["", "4"]})).build().train(2)
        assert (trial.state(), trial.state("4")) == (State.TRAINING, State.TRAINING)
        trial.train()
        bare = recipe(config).build().train()
        assert host_digest(trial) == host_digest(bare)
        arms = [event for event in trial.events("transition") if event["arm"] is not None]
        assert [event["target"] for event in arms] == ["GRAFTING", "STABILIZATION", "EVALUATING"] * 2
        assert all(not place.incubation.is_active for place in trial.run.places.values())

    def test_gives_the_arm_its_first_bytes(self, objective, monkeypatch):
        from esper.kasmina.grafts.incubation import Incubation

        planted, ended = [], []
        take, end = Incubation.take, Incubation.end

        def note_take(incubation, lifecycle):
            params = take(incubation, lifecycle)
            if params is not None:  # the dry run plants newborn ones
                planted.append(params.clone())
            return params

        def note_end(incubation, lifecycle):
            measured = end(incubation, lifecycle)
            if measured:
                ended.append(incubation._of(lifecycle, "params").clone())
            return measured

        monkeypatch.setattr(Incubation, "take", note_take)
        monkeypatch.setattr(Incubation, "end", note_end)
        recipe(growing(objective=objective), policy=Script({1: [""]})).build().train(5)
        assert len(planted) == len(ended) == 1
        assert torch.equal(planted[0], ended[0])


class CutError(BaseException):
    """Cuts an arm, as a kill would."""


def resumed(config: esper.GrowthConfig, path: Path) -> Trial:
    trial = recipe(config).build()
    torch.rand(7)
    trial.session.load(path)
    return trial


def train_on(trial: Trial) -> Trial:
    """To the end, from wherever in an epoch it stands."""
    done = trial.session.step_count % toy.STEPS_PER_EPOCH
    if done and trial.session.step_count == trial.session.epoch * toy.STEPS_PER_EPOCH + done:
        for batch in list(toy.batches(trial.session.epoch))[done:]:
            trial.session.step(batch)
        trial.session.after_epoch()
    trial.train()
    trial.session.finish()
    return trial


@pytest.mark.parametrize(
    ("step", "gate_z"),
    few([(13, 2.33), (25, 1e9), (33, 2.33), (47, 1e9), (56, 2.33), (67, 2.33), (67, 1e9)], [(25, 1e9), (56, 2.33)]),
)
def test_a_trial_resumes_to_the_byte(step, gate_z, tmp_path):
    """While the seed waits, trains in isolation, rises, is held, and after the verdict."""
    config = live(objective="pseudo_residual", incubation_fraction=0.08, gate_z=gate_z)
    expected = train_on(germinated(config))
    trial = germinated(config).train_until(lambda trial: trial.session.step_count == step)
    trial.session.save(tmp_path)
    trial = train_on(resumed(config, tmp_path))
    assert trial.digest() == expected.digest()
    assert timeless(trial.session.events) == timeless(expected.session.events)
    assert trial.session.train_flops == expected.session.train_flops


@pytest.mark.parametrize(("at", "gate_z"), [(3, 2.33), (18, 1e9)])
def test_a_trial_resumes_to_the_byte_in_the_middle_of_its_twin(at, gate_z, tmp_path):
    """Before and after a checkpoint within the arm. What was trained before the cut without one is trained again."""
    config, calls = live(gate_z=gate_z), []

    def loss(model, batch):
        if trial.run.arm is not None:
            calls.append(trial.run.arm)
            if len(calls) == at:
                raise CutError
        return toy.loss(model, batch)

    expected = train_on(germinated(config))
    trial = recipe(config).build(loss=loss, directory=tmp_path, checkpoint_steps=8)
    trial.train(1)
    trial.session.germinate("", "all", settings={"hidden": 8})
    with pytest.raises(CutError):
        trial.train()
    assert set(calls) == {"trial1/twin"}
    if at == 3:
        trial.session.save(tmp_path / "checkpoints")
    saved = store.read(tmp_path / "checkpoints")["growth"]["trial"]["window"]["arm_step"]
    assert saved == (0 if at == 3 else 16)
    trial = train_on(resumed(config, tmp_path / "checkpoints"))
    assert trial.digest() == expected.digest()
    if at == 18:
        assert timeless(trial.session.events) == timeless(expected.session.events)


def test_an_error_in_the_twin_ends_the_trial_and_leaves_the_run(tmp_path):
    def loss(model, batch):
        if trial.run.arm is not None:
            raise RuntimeError("broken")
        return toy.loss(model, batch)

    trial = recipe().build(loss=loss)
    trial.train(1)
    trial.session.germinate("", "all", settings={"hidden": 8})
    with pytest.raises(RuntimeError, match="broken"):
        trial.train()
    assert trial.run.arm is None
    assert trial.growth.trials.current is None
    assert trial.state() is State.CANCELLED
    trial.train()
    trial.session.finish()
    assert outcomes(trial)[0][0] == "CANCELLED"


@pytest.mark.parametrize(
    ("step", "outcome"),
    few(
        [(15, "CANCELLED"), (24, "CANCELLED"), (45, "CANCELLED"), (53, "FOSSILIZED"), (61, "FOSSILIZED")],
        [(45, "CANCELLED"), (53, "FOSSILIZED")],
    ),
)
def test_finish_judges_a_trial_that_can_be_judged_and_gives_up_others(step, outcome):
    trial = germinated().train_until(lambda trial: trial.session.step_count == step)
    trial.session.finish()
    assert [name for name, _ in outcomes(trial)] == [outcome]
    for place in trial.run.places.values():
        assert set(place.state.lifecycle.tolist()) == {int(State.DORMANT)}
        assert not place.arena.grafts


def test_a_policy_may_ask_for_live_trials():
    trial = recipe(policy=Script({1: [""]}, trial="live")).build().train(6)
    assert trial.state() is State.FINE_TUNING
    assert trial.events("round_begun") == []


def test_grafting_waits_until_no_other_graft_is_blended_out():
    """The capture would hold it, and the twin would bring it back."""
    config = live(objective="pseudo_residual", incubation_fraction=0.05, ramp_fraction=0.05, gate_z=1e-4)
    trial = germinated(config).train(8)
    assert trial.state() is State.FINE_TUNING
    assert trial.session.germinate("4", "all", settings={"hidden": 4}).accepted
    trial.train(1)
    assert trial.state("4") is State.TRAINING
    *batches, last = toy.batches(9)
    for batch in batches:
        trial.session.step(batch)
    trial.session.cancel("", "all")
    trial.session.step(last)
    trial.session.after_epoch()
    assert (trial.state(""), trial.state("4")) == (State.CANCELLED, State.TRAINING)
    trial.train(1)
    assert trial.state("4") is State.GRAFTING
    assert json.loads(trial.growth.trials.current.window.start["body"]["topology"][""])["arena"]["grafts"] == []


def test_a_twin_that_is_interrupted_in_a_loop_of_ones_own_is_given_up_and_the_run_grows_on():
    """The run has gone on by a step of its own before the session hears of it; no arm is left standing."""

    def train_step(batch):
        if trial.run.arm is not None and not interruptions:
            interruptions.append(trial.run.arm)
            raise KeyboardInterrupt
        loss = toy.loss(trial.model, batch)
        loss.backward()
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        return loss

    interruptions: list[str] = []
    trial = recipe(scheduler=None).build(loss=None, train_step=train_step)
    for epoch in range(7):
        for batch in toy.batches(epoch):
            trial.session.after_step(batch, train_step(batch))
        try:
            trial.session.after_epoch()
        except KeyboardInterrupt:
            assert trial.session.step_count == 60
        if epoch == 0:
            trial.session.germinate("", "all", settings={"hidden": 8})
    assert interruptions == ["trial1/twin"]
    assert trial.events("trial_ended")[0]["reason"] == "its arms were interrupted"
    assert trial.session.germinate("4", "all", settings={"hidden": 8}).accepted
