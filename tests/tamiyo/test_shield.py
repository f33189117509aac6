from dataclasses import replace

import pytest

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.tamiyo.shield import failures_in_a_row, veto
from tests.tamiyo.seen import NOW, PLACES, place, report

CONFIG = GrowthConfig()
HIDDEN = 4
GRAFT = HIDDEN * (64 + 10 + 1) + 10
"""Parameters, and multiply-adds per row, of the graft that is asked for below."""


def germinate(layer_id: str = "0", seed_id="all", blueprint: str | None = "bottleneck_mlp", trial="round", **settings):
    settings = settings or {"hidden": HIDDEN}
    return Command(layer_id, seed_id, State.GERMINATED, blueprint=blueprint, settings=settings, trial=trial)


def asked(config: GrowthConfig = CONFIG, command: Command | None = None, **seen):
    return veto(command or germinate(), replace(NOW, **seen), config)


def at(**changes):
    """The first place, changed, among the others."""
    return {"places": (place("0", host_parameters=520, **changes), *PLACES[1:])}


def test_what_keeps_all_limits_passes():
    assert asked() is None


@pytest.mark.parametrize("target", [state for state in State if state is not State.GERMINATED])
def test_it_judges_germination_alone(target):
    assert veto(Command("nowhere", "all", target), NOW, CONFIG) is None


# Each rule, and just below its limit


def test_parameters():
    room = int(1.5 * NOW.host_parameters) - GRAFT
    assert asked(grown_parameters=room) is None
    reason = asked(grown_parameters=room + 1)
    assert reason.startswith("Parameters: 310 more would make 1,024 grown ones, above max_growth 1.5 x the host's 682.")


def test_memory():
    config = GrowthConfig(max_memory=0.5)
    assert asked(config, grown_parameters=341 - GRAFT) is None
    reason = asked(config, grown_parameters=342 - GRAFT)
    assert reason.startswith(
        "Memory: grafts with their optimizer state would take 4,104 bytes, above max_memory 0.5 x the host's 8,184."
    )
    assert asked(grown_parameters=342 - GRAFT) is None  # no limit was set


def test_latency():
    config, traced = GrowthConfig(max_latency=0.5), {**at(rows=3), "host_multiply_adds": 10 * GRAFT}
    assert asked(config, **traced, grown_multiply_adds=2 * GRAFT) is None
    reason = asked(config, **traced, grown_multiply_adds=2 * GRAFT + 1)
    assert reason.startswith(
        "Latency: grafts would take 1,551 multiply-adds in a forward pass, above max_latency 0.5 x the host's 3,100."
    )
    assert asked(**traced, grown_multiply_adds=9 * GRAFT) is None


@pytest.mark.parametrize("seen", [{**at(rows=0), "host_multiply_adds": 9**9}, {**at(rows=3), "host_multiply_adds": 0}])
def test_latency_that_cannot_be_told_is_vetoed(seen):
    """What was not measured is missing, and missing never passes."""
    assert "no training step has passed through this place yet" in asked(GrowthConfig(max_latency=9.0), **seen)


def test_confidence():
    assert asked(GrowthConfig(min_confidence=3)) is None
    reason = asked(GrowthConfig(min_confidence=3), germinate(blueprint="glu"))
    assert reason.startswith("Confidence: 'glu' has level 2, below min_confidence 3.")
    assert asked(GrowthConfig(min_confidence=2), germinate(blueprint="glu")) is None


@pytest.mark.parametrize("under_way", [0, 1, 2])
def test_embargo(under_way):
    """Of the culled seed, and of the group that it belongs to; its neighbours are free."""
    resting = at(states=(under_way, 8, 0, 0), is_under_embargo=True)
    assert asked(**resting) == "Embargo: a seed of '0' was culled. It rests for 5 epochs."
    assert asked(command=germinate(seed_id=1), **resting) == "Embargo: seed 1 of '0' was culled. It rests for 5 epochs."
    assert asked(command=germinate(seed_id=2), **resting) is None


def test_an_embargo_that_no_state_shows_holds_too():
    assert asked(**at(is_under_embargo=True)).startswith("Embargo")
    assert asked(command=germinate(seed_id=1), **at(is_under_embargo=True)).startswith("Embargo")


def test_quarantine():
    resting = at(states=(0, 10, 8, 0), is_under_embargo=True)
    assert asked(**resting) == "Quarantine: a seed of '0' was rolled back. It rests for 10 epochs."
    assert asked(command=germinate(seed_id=1), **resting).startswith("Quarantine: seed 1 of '0'")
    assert asked(command=germinate(seed_id=2), **resting).startswith("Embargo: seed 2 of '0'")
    assert asked(command=germinate(seed_id=0), **resting) is None


def test_concurrency():
    assert asked(GrowthConfig(max_active_seeds=3), active=2) is None
    reason = asked(GrowthConfig(max_active_seeds=3), active=3)
    assert reason.startswith("Concurrency: 3 lifecycles are under way, and max_active_seeds is 3.")


def test_consecutive_failures():
    lost = [report(outcome="CULLED"), report(outcome="ROLLED_BACK"), report(outcome="CULLED", layer_id="2")]
    assert asked(reports=lost) is None
    reason = asked(reports=[*lost, report(outcome="CULLED")])
    assert reason.startswith(
        "Failures: the last 3 lifecycles of '0' failed one after the other, and max_failures is 3."
    )
    assert asked(GrowthConfig(max_failures=4), reports=[*lost, report(outcome="CULLED")]) is None


@pytest.mark.parametrize(
    ("outcomes", "failures"),
    [
        ([], 0),
        (["CULLED", "FOSSILIZED"], 0),
        (["CULLED", "FOSSILIZED", "CULLED"], 1),
        (["CULLED", "CANCELLED", "ROLLED_BACK"], 2),
        (["CANCELLED"], 0),
    ],
)
def test_failures_are_counted_from_the_last_success(outcomes, failures):
    assert failures_in_a_row("0", [report(outcome=outcome) for outcome in outcomes]) == failures


# What cannot be at all


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (germinate("1"), "There is no place '1'."),
        (germinate("1"), 'Valid: "", 0, 0:2, 2, 2:4.'),
        (germinate(seed_id=4), "'0' has no seed 4. It has seeds 0 to 3, or 'all'."),
        (germinate(seed_id=-1), "'0' has no seed -1."),
        (germinate(seed_id="first"), "'0' has no seed 'first'."),
        (germinate(blueprint=None), "must name a blueprint"),
        (germinate(blueprint="bottleneck_mpl"), "no blueprint 'bottleneck_mpl'. Did you mean 'bottleneck_mlp'?"),
        (germinate(hiden=3), "no setting 'hiden'"),
        (germinate(hidden=0), "hidden must be a whole number of at least 1, not 0"),
    ],
)
def test_what_does_not_exist_is_vetoed_by_name(command, reason):
    assert reason in asked(command=command)


def test_a_misfit_is_vetoed_with_what_fits():
    reason = asked(command=germinate(blueprint="conv_bottleneck", kernel=3))
    assert reason.startswith(
        "'conv_bottleneck' does not fit '0': it grows on image or signal, and the place has features."
    )
    assert "bottleneck_mlp" in reason.split("What fits: ")[1]
    assert "conv" not in reason.split("What fits: ")[1]


# Sets


def several(seed_id=(0, 1, 2), **fields):
    return replace(germinate(trial="live"), seed_id=seed_id, **fields)


def test_the_grafts_of_a_set_add_up():
    one = HIDDEN * (64 + 2 + 1) + 2  # chunks of 2 and 3 channels: 270 and 275
    room = GrowthConfig(max_growth=(2 * one + 5 + 1) / NOW.host_parameters)
    assert asked(room, several((0, 1))) is None
    assert asked(room, several((0, 1, 2))).startswith("Parameters: ")
    assert asked(room, replace(several((0, 1, 2)), trial="round")) is None  # of a round's candidates one is adopted


def test_a_set_counts_each_of_its_lifecycles():
    assert asked(GrowthConfig(max_active_seeds=3), several(), active=0) is None
    reason = asked(GrowthConfig(max_active_seeds=3), several(), active=1)
    assert reason.startswith("Concurrency: 1 lifecycles are under way, 3 are asked for, and max_active_seeds is 3.")


def test_a_set_is_judged_at_all_of_its_places():
    assert asked(command=several(also={"2": (0, 3)})) is None
    assert asked(command=several(also={"2": (0, 4)})).startswith("'2' has no seed 4.")
    assert asked(command=several(also={"nowhere": 0})).startswith("There is no place 'nowhere'")
    assert asked(command=several(())) == "A command must name a seed."


def test_one_seed_that_rests_vetoes_its_set():
    resting = at(states=(0, State.CULLED, 0, 0), is_under_embargo=True)
    assert asked(command=several((0, 2)), **resting) is None
    assert asked(command=several((0, 1)), **resting).startswith("Embargo: seed 1 of '0'")
