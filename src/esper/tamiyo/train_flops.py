"""How many training FLOPs growth may still take under ``max_train_flops``: arms, judging, and what is adopted.

The run without growth takes ``step_flops`` in each of its planned steps; the bound is ``max_train_flops`` times that.
All that is planned here is the worst case: every arm runs to its end, the largest candidate is adopted and trains to
the end of the run, every look is taken, and a last blend-out follows the planned steps. A training step of a graft
takes twice its multiply-adds forward and four times backward, at most. What emergencies measure is not foreseen.
"""

import sys
from bisect import bisect_left
from collections.abc import Sequence

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation

STEP_FLOPS = 6
"""Of a graft in a training step, for each of its multiply-adds forward, at most; but torch counts the gradient of the
weights of grouped convolutions (``depthwise_conv``) as if they were dense, which is more."""

LAST_EVALUATIONS = 2
"""Of a run that is finished: one for looks that are open, one for what was taken out."""

NORM_STEPS = 4
"""Training steps that renewing the statistics of batch norms costs at most, on both sides of a comparison."""

MARKS = 3
"""At so many marks of its window may the run be evaluated too, at equal FLOPs."""

ARMS_SHARE = 0.5
"""Share of what may be spent that goes into arms, where there is a choice: the rest is for what they find."""


def room(seen: Observation, config: GrowthConfig) -> float:
    """FLOPs that growth may take, beside all that is under way; negative if the bound is exceeded already."""
    assert config.max_train_flops is not None
    left = seen.planned_steps - seen.step + _ramp(seen, config)
    evaluations = seen.open_evaluations + LAST_EVALUATIONS
    committed = (left + seen.open_arm_steps) * _step(seen) + evaluations * seen.evaluation_flops
    return config.max_train_flops * seen.step_flops * seen.planned_steps - seen.train_flops - committed


def worst_case(
    multiply_adds: Sequence[int], seen: Observation, config: GrowthConfig, trial: str, *, are_colonies: bool = False
) -> float:
    """FLOPs that candidates may take beside all that is under way, those that wait for a round among them.

    Args:
        multiply_adds: of each one's forward pass on the traced step.
        seen: what is known of the run.
        config: how they will be tried.
        trial: ``"round"`` for further candidates of the next round, ``"live"`` for grafts of one live trial.
        are_colonies: whether there are colonies among them, whose arms take as many steps as the run.
    """
    waiting = [*seen.waiting_multiply_adds]
    if trial == "round":
        return _round([*waiting, *multiply_adds], seen, config, are_colonies=are_colonies)
    together, left = sum(multiply_adds), seen.planned_steps - seen.step
    twin = max(0, left - seen.open_arm_steps) * _step(seen) * (config.judge == "twin")  # it may replay all that is left
    trained = STEP_FLOPS * together * (left + _ramp(seen, config))
    judged = len(multiply_adds) * looks_of_a_trial(config) * _evaluation(together, seen)
    return twin + trained + judged + (_round(waiting, seen, config) if waiting else 0)


def _round(
    multiply_adds: Sequence[int], seen: Observation, config: GrowthConfig, *, are_colonies: bool = False
) -> float:
    window, step, largest = round_steps(seen, config), _step(seen), max(multiply_adds)
    is_at_equal_flops = config.compare == "flops" and not are_colonies
    if is_at_equal_flops:
        arms = sum(max(window * step, step + STEP_FLOPS * one) for one in multiply_adds)
    else:
        arms = sum(window * (step + STEP_FLOPS * one) for one in multiply_adds)
    left = max(0, seen.planned_steps - seen.step - window) + _ramp(seen, config)
    by_means = len(multiply_adds) + MARKS * is_at_equal_flops
    looks = by_means + len(config.keep_looks) + 3
    arms += (by_means + 1) * NORM_STEPS * (step + STEP_FLOPS * largest)
    return arms + STEP_FLOPS * largest * left + looks * _evaluation(largest, seen)


def num_arms(seen: Observation, config: GrowthConfig) -> int:
    """Candidates of a round that the bound pays for, at least one; their sizes are bounded by :func:`largest_graft`."""
    if config.max_train_flops is None or not seen.step_flops:
        return config.max_candidates
    arm = round_steps(seen, config) * _step(seen) + seen.evaluation_flops
    return max(1, min(config.max_candidates, int(ARMS_SHARE * room(seen, config) / arm)))


def largest_graft(seen: Observation, config: GrowthConfig, trial: str, *, is_colony: bool = False) -> int:
    """Multiply-adds on the traced step that each of the next candidates may take; below 0 if none may."""
    if not seen.step_flops:
        return -1
    left = room(seen, config)
    is_alone = trial == "live" or is_colony  # of colonies a round tries one
    count = 1 if is_alone else max(1, num_arms(seen, config) - len(seen.waiting_multiply_adds))
    sizes = range(min(max(0, int(left / STEP_FLOPS)), sys.maxsize - 1) + 1)  # a range can be no longer

    def is_too_much(one: int) -> bool:
        return worst_case([one] * count, seen, config, trial, are_colonies=is_colony) > left

    return bisect_left(sizes, True, key=is_too_much) - 1


def looks_of_a_trial(config: GrowthConfig) -> int:
    """Evaluations that a graft in a live trial may still ask for: twin, attribution, keep looks, one at the end."""
    return len(config.keep_looks) + 3


def round_steps(seen: Observation, config: GrowthConfig) -> int:
    """Steps of a round's window."""
    return max(1, round(config.round_fraction * seen.planned_steps))


def _step(seen: Observation) -> float:
    """FLOPs of a training step with all that has grown."""
    return seen.step_flops + STEP_FLOPS * (seen.grown_multiply_adds - seen.first_multiply_adds)


def _evaluation(graft: int, seen: Observation) -> float:
    """FLOPs of an evaluation with one more graft."""
    return seen.evaluation_flops * (1 + graft / max(1, seen.host_multiply_adds + seen.grown_multiply_adds))


def _ramp(seen: Observation, config: GrowthConfig) -> int:
    """Steps of the blend-out that may follow the planned ones."""
    return max(1, round(config.ramp_fraction * seen.planned_steps))
