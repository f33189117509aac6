"""A session carries out commands to many seeds whole, or not at all."""

from dataclasses import replace
from itertools import pairwise

import pytest
from torch.nn.modules.module import register_module_module_registration_hook

from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.arena import Arena
from tests.runtime.toy import Recipe, Script, Trial, growing

PLACES = {"": 1, "0": 2, "2": 3}
CONFIG = growing(layers=PLACES, embargo_epochs=0, max_active_seeds=20, objective="none", keep_looks=(0.95,))
ALL = Command(
    "2",
    (0, 2),
    State.GERMINATED,
    blueprint="bottleneck_mlp",
    settings={"hidden": 2},
    also={"0": (1,), "": "all"},
)


def asked(command: Command = ALL, config=CONFIG) -> tuple[Trial, object]:
    trial = Recipe(config, policy=Script({})).build()
    return trial, trial.session.submit(command)


def test_one_order_opens_a_lifecycle_for_each_seed_with_one_answer_and_one_event_each():
    trial, answer = asked()
    assert answer.accepted
    assert (answer.version, answer.versions) == (None, (1, 1, 1, 1))
    alive = [(one.number, one.layer_id, one.seed_id) for one in trial.run.books.alive.values()]
    assert alive == [(1, "2", 0), (2, "2", 2), (3, "0", 1), (4, "", "all")]
    events = trial.events("transition")
    assert [(event["lifecycle"], event["layer_id"], event["seed_id"]) for event in events] == alive
    assert {(event["source"], event["target"], event["version"]) for event in events} == {("DORMANT", "GERMINATED", 1)}


def test_one_seed_that_is_busy_refuses_the_whole_order():
    trial, _ = asked(replace(ALL, layer_id="2", seed_id=1, also={}))
    before = trial.digest()
    answer = trial.session.submit(replace(ALL, seed_id=(0, 1)))
    assert not answer.accepted
    assert "Seed 1 of '2' cannot go from GERMINATED to GERMINATED" in answer.reason
    assert trial.digest() == before
    assert len(trial.run.books.alive) == 1
    (event,) = trial.events("refused")
    assert (event["layer_id"], event["seed_id"], event["also"]) == ("2", [0, 1], {"0": [1], "": "all"})


def test_a_stale_version_of_one_seed_refuses_the_whole_order():
    trial, _ = asked()
    stale = Command("2", (0, 2), State.CANCELLED, version=(1, 0))
    answer = trial.session.submit(stale)
    assert not answer.accepted
    assert "Seed 2 of '2' is at version 1; the command was for version 0" in answer.reason
    assert len(trial.run.books.alive) == 4
    assert trial.session.submit(replace(stale, version=(1, 1))).versions == (2, 2)
    assert len(trial.run.books.alive) == 2


@pytest.mark.parametrize(
    ("trial", "limits", "reason"),
    [
        ("live", {"max_growth": 2.0}, "Parameters"),
        ("live", {"max_active_seeds": 3}, "Concurrency: 0 lifecycles are under way, 4 are asked for"),
        ("round", {"max_active_seeds": 3}, "Concurrency"),
        ("round", {"max_growth": 2.0}, None),
    ],
)
def test_the_shield_judges_what_all_of_it_would_add(trial, limits, reason):
    """Each of the grafts alone keeps these limits; of a round's candidates one at most is adopted."""
    config = replace(CONFIG, **limits)
    command = replace(ALL, trial=trial)
    for layer_id, seed_id in command.addresses:
        assert asked(replace(command, layer_id=layer_id, seed_id=seed_id, also={}), config)[1].accepted
    there, answer = asked(command, config)
    assert answer.accepted == (reason is None)
    assert reason is None or answer.reason.startswith(reason)
    assert len(there.events("veto")) == (reason is not None)
    assert len(there.run.books.alive) == 4 * answer.accepted


def test_a_live_trial_of_many_moves_on_together_and_regroups_each_place_once_a_boundary():
    trial = Recipe(replace(CONFIG, layers={"0": 2, "2": 3}, trial="live"), policy=Script({})).build()
    command = replace(ALL, seed_id=(0, 1, 2), also={"0": (0, 1)}, trial="live")
    assert trial.session.submit(command).accepted
    regrouped = []
    handle = register_module_module_registration_hook(
        lambda module, name, child: (
            regrouped.append(name) if isinstance(module, Arena) and name == "groups" and trial.run.arm is None else None
        )
    )
    try:
        trial.train(1)
        assert trial.state("2", 2) is trial.state("0", 1) is State.GRAFTING
        assert len(regrouped) == 2  # one for each place
    finally:
        handle.remove()
    trial.train()
    trial.session.finish()
    assert len(trial.session.field_reports) == 5
    assert {trial.state(name, seed) for name in ("0", "2") for seed in range(2)} == {State.DORMANT}
    for number in range(1, 6):
        path = [event for event in trial.events("transition") if event["lifecycle"] == number]
        assert all(one["target"] == other["source"] for one, other in pairwise(path))
        assert [event["version"] for event in path] == list(range(1, len(path) + 1))


def test_a_cancelled_set_is_blended_out_and_wakes_for_the_next():
    trial, _ = asked(replace(ALL, trial="live"), replace(CONFIG, trial="live"))
    trial.train(1)
    assert trial.session.submit(replace(ALL, target=State.CANCELLED)).accepted
    trial.train(3)
    assert not trial.run.books.alive
    assert {report.outcome for report in trial.session.field_reports} == {"CANCELLED"}
    assert all(not place.arena.grafts for place in trial.run.places.values())
    assert trial.session.submit(ALL).accepted
