"""Going back to the last good state restores what training made, to the byte, and nothing of what happened."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.host.wrapping import host_state_dict
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest


def config(**settings: Any) -> esper.GrowthConfig:
    return growing(
        **{"layers": ["", "4"], "round_fraction": 0.2, "keep_looks": (0.95,), "quarantine_epochs": 2} | settings
    )


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


class Remembers(Script):
    """A policy with something to restore."""

    def __init__(self, plan: dict[int, Any]) -> None:
        super().__init__(plan)
        object.__setattr__(self, "seen", [])

    def decide(self, observation):
        self.seen.append(observation.epoch)
        return super().decide(observation)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen[:] = state["seen"]


def build(plan: dict[int, Any] | None = None, **settings: Any) -> Trial:
    session = settings.pop("session", {})
    recipe = Recipe(config(**settings), model=noisy_host, policy=Remembers(plan or {}))
    return recipe.build(**session)


def adopted(**settings: Any) -> Trial:
    """A run with a live graft and good states from with and without it."""
    trial = build({1: [""]}, **settings).train(5)
    assert trial.state() is State.FINE_TUNING
    return trial


def steps(trial: Trial, count: int) -> None:
    for batch in list(toy.batches(11))[:count]:
        trial.session.step(batch)


def body(trial: Trial) -> dict[str, Any]:
    """What must be restored, without what is not."""
    body = trial.run.snapshots.body()
    left_out = (".version", ".epochs_in_state", ".steps_in_state", ".embargo_epochs", ".telemetry.")
    model = {name: value for name, value in body["model"].items() if not any(part in name for part in left_out)}
    kept = {name: body[name] for name in ("topology", "optimizer", "others")}
    return {"model": model, **kept, "scheduler": trial.run.snapshots.scheduler()}


def test_restores_parameters_buffers_optimizer_scheduler_scaler_grafts_and_controller_to_the_byte():
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    trial = adopted(session={"scaler": scaler})
    trial.growth.policy.seen[:] = trial.recovery.good[-1]["policy"]["seen"]  # it has decided once more since
    before, policy, graft = tree_digest(body(trial)), trial.growth.policy.state_dict(), trial.live().clone()
    steps(trial, 7)
    trial.growth.policy.seen.append("nonsense")
    assert tree_digest(body(trial)) != before
    assert trial.session.rollback().accepted
    assert tree_digest(body(trial)) == before
    assert trial.growth.policy.state_dict() == policy
    assert torch.equal(trial.live(), graft)


@pytest.mark.parametrize("part", ["optimizer", "model", "scheduler"])
def test_would_be_seen_if_something_were_not_restored(part, monkeypatch):
    """The control of the test above."""
    trial = adopted()
    before = tree_digest(body(trial))
    steps(trial, 7)
    if part == "scheduler":
        monkeypatch.setattr(trial.run.snapshots, "restore_scheduler", lambda state: None)
    elif part == "optimizer":
        monkeypatch.setattr("esper.runtime.training.optimizers.restore_optimizer", lambda *_: None)
    else:
        trial.recovery.good[-1]["body"]["model"]["0.weight"] += 1e-7
    trial.session.rollback()
    assert tree_digest(body(trial)) != before


def test_does_not_restore_position_random_streams_books_versions_and_log():
    trial = adopted()
    steps(trial, 7)
    trial.session.submit(Command("4", 0, State.GERMINATED, blueprint="bottleneck_mlp", settings={"hidden": 2}))
    before = {
        "step": trial.session.step_count,
        "epoch": trial.session.epoch,
        "random": tree_digest(trial.run.snapshots.clock()["random"]),
        "flops": trial.session.train_flops,
        "versions": [place.state.version.tolist() for place in trial.run.places.values()],
        "events": len(trial.session.events),
        "losses": list(trial.run.books.select_losses),
    }
    trial.session.rollback()
    assert before == {
        "step": trial.session.step_count,
        "epoch": trial.session.epoch,
        "random": tree_digest(trial.run.snapshots.clock()["random"]),
        "flops": trial.session.train_flops,
        "versions": [place.state.version.tolist() for place in trial.run.places.values()],
        "events": len(trial.session.events) - 1,
        "losses": list(trial.run.books.select_losses),
    }
    (told,) = trial.events("rollback")
    assert (told["to_step"], told["who"], told["lifecycles"]) == (50, "user", [])


def test_a_graft_that_was_not_live_then_is_rolled_back_and_its_seed_rests():
    trial = build({1: [""]}).train_until(lambda trial: bool(trial.events("round_ended")))
    (fallback,) = trial.recovery.fallbacks
    version = trial.run.places[""].state.version.tolist()
    trial.session.rollback()
    assert trial.state() is State.ROLLED_BACK
    assert trial.run.places[""].state.version.tolist() == [one + 1 for one in version]
    assert not trial.run.places[""].is_growing
    for name, value in host_state_dict(trial.model).items():
        assert torch.equal(value, fallback["body"]["model"][name])
    assert [(one.outcome, one.reason) for one in trial.session.field_reports] == [("ROLLED_BACK", "asked for")]
    answer = trial.session.submit(Script({}).command(""))
    assert not answer.accepted
    assert "It rests for 2 epochs" in answer.reason
    states = []
    for _ in range(4):
        trial.session.after_epoch()
        states.append(trial.state())
    assert states == [State.ROLLED_BACK] * 2 + [State.DORMANT] * 2


def test_records_of_grafts_that_were_live_then_go_back_too():
    trial = adopted(keep_looks=(0.5,))
    (one,) = trial.run.in_state(*LIVE)
    assert (one.looks, one.is_kept) == (0, False)
    good = trial.recovery.good[-1]
    trial.train(1)
    assert (one.looks, one.is_kept) == (1, True)
    trial.recovery.good = [good]
    trial.session.rollback()
    assert (one.looks, one.is_kept, "keep" in one.gates) == (0, False, False)
    assert trial.run.books.judged == 1  # what was spent on looks stays spent
    trial.train()
    trial.session.finish()
    assert [report.outcome for report in trial.session.field_reports] == ["FOSSILIZED"]


def test_a_round_and_a_trial_under_way_end():
    trial = build({1: ["4"]}).train(2)
    assert trial.rounds.current is not None
    trial.session.rollback()
    assert trial.rounds.current is None
    assert [one.outcome for one in trial.session.field_reports] == ["CANCELLED"]
    trial = build().train(1)
    trial.session.germinate("", "all", settings={"hidden": 4})
    trial.train(2)
    assert trial.state() is State.GRAFTING
    trial.session.rollback()
    assert trial.growth.trials.current is None
    assert trial.state() is State.ROLLED_BACK
    assert not trial.run.places[""].is_growing
    trial.train()
    trial.session.finish()


def test_a_seed_that_waits_goes_on_waiting():
    trial = build().train(2)
    trial.session.germinate("4", "all", settings={"hidden": 4})
    steps(trial, 3)
    trial.session.rollback()
    assert trial.state("4") is State.GERMINATED
    trial.train(1)
    assert trial.state("4") is State.GRAFTING


class TestWhatIsKept:
    def test_two_generations(self):
        trial = build().train(5)
        assert [one["step"] for one in trial.recovery.good] == [40, 50]

    def test_nothing_while_something_is_on_trial_or_blended_out(self):
        trial = build().train(2)
        trial.session.germinate("4", "all", settings={"hidden": 4})
        trial.train(3)
        assert trial.growth.trials.current is not None
        assert [one["step"] for one in trial.recovery.good] == [20, 30]
        trial = adopted()
        trial.session.cancel("", "all")
        steps(trial, 2)
        trial.session.after_epoch()
        assert trial.recovery.good[-1]["step"] == 50

    def test_at_every_boundary_in_the_window_of_a_round(self):
        """There the run is the run: a harm right after the round does not cost all of its window."""
        trial = build({2: ["4"]}, gate_z=1e9).train_until(lambda trial: bool(trial.events("round_ended")))
        (begun,) = trial.events("round_begun")
        assert (begun["step"], begun["end_step"]) == (20, 44)
        with torch.no_grad():
            trial.model[0].weight.fill_(float("nan"))
        steps(trial, 4)
        (told,) = trial.events("rollback")
        assert (told["to_step"], told["who"]) == (40, "session")

    def test_else_such_a_harm_would_cost_the_window(self, monkeypatch):
        """The control."""
        trial = build({2: ["4"]}, gate_z=1e9).train(2)
        monkeypatch.setattr(trial.recovery, "remember_good", lambda now: None)
        trial.train_until(lambda trial: bool(trial.events("round_ended")))
        trial.session.rollback()
        assert trial.events("rollback")[0]["to_step"] == 20

    def test_the_end_of_a_round_that_adopted_something(self):
        trial = build({1: [""]}).train_until(lambda trial: bool(trial.events("round_ended")))
        assert trial.recovery.newest["step"] == trial.events("round_begun")[0]["end_step"]

    def test_the_twin_that_a_run_has_become_after_a_live_trial(self):
        trial = build(gate_z=1e9).train(2)
        trial.session.germinate("4", "all", settings={"hidden": 4})
        trial.train_until(lambda trial: bool(trial.events("trial_ended")))
        (ended,) = trial.events("trial_ended")
        assert ended["reason"].startswith("twin_z is")
        before = tree_digest(body(trial))
        steps(trial, 3)
        trial.session.rollback()
        assert trial.events("rollback")[0]["to_step"] == ended["step"]
        assert tree_digest(body(trial)) == before

    def test_nothing_in_a_run_that_cannot_grow(self):
        trial = build(max_rounds=0).train(3)
        assert trial.recovery.good == []
        assert trial.growth.emergency._losses == []

    def test_nothing_where_no_copy_of_the_run_fits_into_memory(self):
        assert build(trial="live", judge="ablation").train(3).recovery.good == []

    def test_nothing_of_a_run_that_is_not_well(self):
        trial = build().train(2)
        with torch.no_grad():
            trial.model[0].weight[0, 0] = float("nan")
        assert not trial.recovery.is_well(trial.run.judge.measure())

    def test_nothing_from_before_a_fossil(self):
        trial = adopted(keep_looks=(0.5,), freeze="at_once").train(1)
        assert trial.session.field_reports[-1].outcome == "FOSSILIZED"
        assert [one["step"] for one in trial.recovery.good] == [60]
        trial.session.rollback()
        assert trial.run.places[""].is_growing

    def test_it_survives_save_and_load(self, tmp_path):
        trial = adopted()
        steps(trial, 3)
        trial.session.save(tmp_path)
        resumed = build({1: [""]})
        resumed.session.load(tmp_path)
        for one in (trial, resumed):
            one.session.rollback()
        assert resumed.digest() == trial.digest()
        assert resumed.growth.policy.state_dict() == trial.growth.policy.state_dict()


def test_without_a_good_state_it_is_refused_and_says_so():
    trial = build()
    steps(trial, 3)
    before = trial.digest()
    with pytest.raises(esper.TransitionError, match="There is no good state to go back to"):
        trial.session.rollback()
    assert trial.digest() == before


def test_a_state_with_a_graft_that_was_removed_since_is_not_gone_back_to():
    trial = adopted()
    trial.session.cancel("", "all")
    steps(trial, 8)
    assert not trial.run.places[""].is_growing
    trial.session.rollback()  # from before the adoption: newer ones hold the graft
    (told,) = trial.events("rollback")
    assert told["to_step"] < 50
    assert not trial.run.places[""].is_growing


def test_a_rolled_back_run_goes_on_and_can_grow_again():
    trial = build({1: [""], 8: [""]}, quarantine_epochs=1)
    trial.train_until(lambda trial: bool(trial.events("round_ended")))
    trial.session.rollback()
    trial.session.after_epoch()
    trial.train()
    trial.session.finish()
    first, second = trial.session.field_reports
    assert (first.outcome, second.blueprint) == ("ROLLED_BACK", "bottleneck_mlp")


def test_a_place_that_was_chunked_anew_keeps_its_seeds():
    trial = build().train(2)
    host: dict[str, Tensor] = {name: value.clone() for name, value in host_state_dict(trial.model).items()}
    trial.session.rechunk("4", 3)
    steps(trial, 4)
    trial.session.rollback()
    assert trial.run.places["4"].state.num_seeds == 3
    for name, value in host_state_dict(trial.model).items():
        assert torch.equal(value, host[name])


class Twice(nn.Module):
    """Calls one of its layers under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(toy.FEATURES, 8)
        self.mid = nn.Linear(8, 8)
        self.again = self.mid
        self.last = nn.Linear(8, toy.CLASSES)

    def forward(self, x):
        return self.last(torch.relu(self.again(torch.relu(self.mid(self.first(x))))))


def test_a_shared_place_that_was_chunked_anew_keeps_its_seeds():
    trial = Recipe(growing(layers={"mid": 2}), model=Twice, policy=Script({})).build().train(2)
    trial.session.rechunk("mid", 4)
    assert trial.session.rollback().accepted
    assert trial.run.places["mid"].state.num_seeds == 4
    trial.train(1)


class Caching(nn.Module):
    """Keeps a table that a longer batch replaces by a longer one, or one that shares its memory with itself."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.body = nn.Linear(toy.FEATURES, toy.CLASSES)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x):
        if self.training and len(x) > len(self.table):
            self.register_buffer("table", torch.ones(len(x), toy.CLASSES), persistent=False)
        return self.body(x) + self.table[:1]


@pytest.mark.parametrize("table", [torch.zeros(8, 3), torch.zeros(1, 3).expand(32, 3)], ids=["grows", "expanded"])
def test_buffers_that_cannot_be_filled_in_place_are_put_back_by_name(table):
    trial = Recipe(growing(layers=["body"]), model=lambda: Caching(table), policy=Script({})).build()
    x, y = next(toy.batches(0))
    trial.session.step((x[:8], y[:8]))
    trial.session.after_epoch()
    trial.session.step((x, y))
    trial.session.rollback()
    assert trial.model.table.shape == table.shape
    assert torch.equal(trial.model.table, table)
    trial.train(1)


def test_parameter_groups_that_the_caller_holds_stay_the_optimizers():
    trial = build()
    (held,) = groups = trial.optimizer.param_groups
    steps(trial, 1)  # the first one is counted, and undone for that
    trial.session.after_epoch()
    trial.session.rollback()
    assert trial.optimizer.param_groups is groups
    assert trial.optimizer.param_groups[0] is held


class TestAPolicyThatRemembers:
    def test_is_resumed_as_it_was(self, tmp_path):
        trial = build().train(3)
        trial.session.save(tmp_path)
        resumed = build()
        resumed.session.load(tmp_path)
        assert resumed.growth.policy.seen == trial.growth.policy.seen == [1, 2, 3]

    @pytest.mark.parametrize("saved_by", ["one that remembers", "one that does not"])
    def test_is_not_exchanged_for_one_of_another_kind(self, saved_by, tmp_path):
        trials = [build(), Recipe(config(), model=noisy_host, policy=Script({})).build()]
        writer, reader = trials if saved_by == "one that remembers" else trials[::-1]
        writer.session.save(tmp_path)
        with pytest.raises(esper.CheckpointError, match="Resume with the policy that it was saved with"):
            reader.session.load(tmp_path)
