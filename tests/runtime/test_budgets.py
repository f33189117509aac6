"""Budgets hold from end to end, for every kind of host, however much everything that grows is worth."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import esper
from esper.contracts.lifecycle import State
from tests.few import few
from tests.runtime.budgeted import HOSTS, Budgeted
from tests.runtime.toy import Script

pytestmark = pytest.mark.usefixtures("offsets_pass")
every = pytest.mark.parametrize("host", few(HOSTS, ["mlp", "cnn"]))


def run(host: str, *, session: dict[str, Any] | None = None, **config: Any) -> Budgeted:
    defaults: dict[str, Any] = {"max_growth": 20.0, "capacity_per_round": 3.0, "compare": "steps"}
    return Budgeted(host, esper.GrowthConfig(**defaults | config), session or {}).finish()


@cache
def bare(host: str) -> tuple[int, int, int]:
    """Parameters, forward FLOPs and training FLOPs of the run that never grows."""
    one = run(host, max_rounds=0)
    return one.parameters, one.forward_flops, one.session.train_flops


@cache
def free(host: str) -> Budgeted:
    """The run without those bounds: what every negative control looks at."""
    return run(host)


@pytest.mark.parametrize(("host", "bound"), few([("mlp", 0.2), ("cnn", 0.6), ("gpt", 0.2)], ["mlp", "cnn"]))
def test_parameters(host, bound):
    grown, (parameters, *_) = run(host, max_growth=bound), bare(host)
    assert parameters < grown.parameters <= (1 + bound) * parameters
    assert free(host).parameters > (1 + bound) * parameters


@pytest.mark.parametrize(("host", "bound"), few([("mlp", 0.6), ("cnn", 0.2), ("gpt", 0.6)], ["mlp"]))
def test_memory(host, bound):
    """Weights and moments: as many for each parameter of host and graft."""
    grown, (parameters, *_) = run(host, max_memory=bound), bare(host)
    assert parameters < grown.parameters <= (1 + bound) * parameters


@pytest.mark.parametrize(("host", "bound"), few([("mlp", 0.2), ("cnn", 0.6), ("gpt", 0.2)], ["mlp", "cnn"]))
def test_latency(host, bound):
    """In what torch counts of a forward pass of the exported network."""
    grown, (_, flops, _) = run(host, max_latency=bound), bare(host)
    assert flops < grown.forward_flops <= (1 + bound) * flops
    assert free(host).forward_flops > (1 + bound) * flops


class TestTrainFlops:
    """Of the whole run, with arms and judging, as the session books them."""

    @pytest.mark.parametrize(
        ("host", "bound", "compare"),
        few(
            [
                ("mlp", 2.5, "flops"),
                ("mlp", 2.0, "steps"),
                ("cnn", 2.5, "flops"),
                ("gpt", 1.5, "steps"),
                ("gpt", 1.5, "flops"),
            ],
            ["mlp", ("cnn", 2.5, "flops")],
        ),
    )
    def test_the_run_keeps_the_bound_and_grows_within_it(self, host, compare, bound):
        grown, (*_, flops) = run(host, max_train_flops=bound, compare=compare), bare(host)
        assert flops < grown.session.train_flops <= bound * flops
        assert "FOSSILIZED" in grown.told("field_report", "outcome")
        assert free(host).session.train_flops > bound * flops

    @pytest.mark.parametrize("host", few(["mlp", "cnn"], ["mlp"]))
    def test_one_that_never_binds_changes_nothing(self, host):
        assert run(host, max_train_flops=1e3).session.train_flops == free(host).session.train_flops

    def test_a_tighter_one_tries_fewer_or_smaller_grafts(self):
        tried = {bound: run("mlp", max_train_flops=bound).told("arm_ended", "arm_flops") for bound in (1.3, 1.6, 4.0)}
        spent = [sum(flops) for flops in tried.values()]
        assert spent == sorted(spent)
        assert len(tried[1.3]) < len(tried[4.0])

    @every
    def test_one_that_leaves_no_room_is_told_once_in_words(self, host):
        tight, (*_, flops) = run(host, max_train_flops=1.001), bare(host)
        assert tight.session.train_flops == flops
        notes = [text for text in tight.told("note", "text") if "Nothing can grow" in text]
        assert notes == [
            "Nothing can grow: no blueprint of the configuration is small enough for max_train_flops 1.001 at any "
            "place. Raise it, or set max_rounds=0, which never grows."
        ]
        assert not [text for text in free(host).told("note", "text") if "Nothing can grow" in text]

    @pytest.mark.parametrize(("judge", "bound"), [("twin", 3.0), ("ablation", 2.2)])
    def test_live_trials_keep_it_too(self, judge, bound):
        settings = {"trial": "live", "judge": judge, "ramp_fraction": 0.05}
        grown, (*_, flops) = run("mlp", max_train_flops=bound, **settings), bare("mlp")
        assert grown.session.train_flops <= bound * flops
        assert grown.told("trial_ended", "adopted")
        assert run("mlp", **settings).session.train_flops > flops

    @pytest.mark.parametrize("trial", ["round", "live"])
    def test_the_shield_vetoes_a_command_that_could_break_it(self, trial):
        """Whoever sends it."""
        command = Script({}, hidden=40, trial=trial).command("")
        config = esper.GrowthConfig(max_growth=50.0, max_rounds=1, grow_after=0.3, grow_at=0.3, compare="steps")
        tight = Budgeted("mlp", replace(config, max_train_flops=1.4)).train(1)
        answer = tight.session.submit(command)
        assert answer.reason.startswith("FLOPs: the run could come to")
        assert tight.told("veto", "reason") == [answer.reason]
        assert tight.finish().session.train_flops <= 1.4 * bare("mlp")[2]
        loose = Budgeted("mlp", config).train(1)
        assert loose.session.submit(command).accepted
        assert loose.finish().session.train_flops > 1.4 * bare("mlp")[2]

    def test_before_the_first_step_nothing_can_be_planned(self):
        one = Budgeted("mlp", esper.GrowthConfig(max_train_flops=2.0))
        answer = one.session.submit(Script({}).command(""))
        assert answer.reason.startswith("FLOPs: max_train_flops is set, but no training step")

    @pytest.mark.parametrize("stop", [1, 6])
    def test_a_resumed_run_plans_as_before(self, tmp_path, stop):
        config = esper.GrowthConfig(max_train_flops=2.0, max_growth=20.0, compare="steps", capacity_per_round=3.0)
        whole = Budgeted("mlp", config).finish()
        first = Budgeted("mlp", config).train(stop)
        first.session.save(tmp_path)
        second = Budgeted("mlp", config)
        second.session.load(tmp_path)
        second.finish()
        assert second.session.train_flops == whole.session.train_flops <= 2.0 * bare("mlp")[2]


def test_other_budgets_that_leave_no_room_are_told_by_name():
    for setting, value in (("max_growth", 0.001), ("max_memory", 0.001), ("max_latency", 1e-5)):
        tight = run("cnn", **{setting: value})
        assert tight.parameters == bare("cnn")[0]
        (note,) = [text for text in tight.told("note", "text") if "Nothing can grow" in text]
        assert f"small enough for {setting} {value:g} at any place" in note


def test_two_that_leave_no_room_together_are_both_told():
    tight = run("mlp", max_growth=0.001, max_latency=1e-5)
    (note,) = [text for text in tight.told("note", "text") if "Nothing can grow" in text]
    assert "small enough for max_growth 0.001 and max_latency 1e-05 at any place. Raise them" in note


def test_a_run_that_asks_for_no_growth_is_told_nothing():
    quiet = run("mlp", max_rounds=0, max_growth=0.001)
    assert not [text for text in quiet.told("note", "text") if "Nothing can grow" in text]


@every
def test_everything_that_grows_here_is_worth_it(host):
    """Of the negative controls: budgets alone bind these runs."""
    assert State.FOSSILIZED.name in free(host).told("field_report", "outcome")
