import dataclasses
import math

import pytest

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest

NAN = math.nan
WRONG = {
    "layers": ["encoder.*", ["fc", 3], 7],
    "seeds_per_layer": [0, -1, 2.5, "64"],
    "blueprints": [(), "bottleneck_mlp", [1]],
    "max_rounds": [-1, 1.5, None],
    "max_candidates": [0, "4"],
    "capacity_per_round": [0, -1.0, NAN, "1"],
    "max_growth": [0, NAN, None],
    "grow_after": [0, 1.1, NAN, "0.1"],
    "grow_at": [0, 2, 0.04, 0.5],  # the last two: outside grow_after .. grow_until
    "grow_until": [0, -0.1, 1.5],
    "patience": [0, 1.5],
    "min_delta": [-0.1, NAN, "0"],
    "round_fraction": [0, 1.5],
    "compare": ["loss", None],
    "choice": ["last", None, True],
    "arms": ["together", None, True],
    "ramp_fraction": [0, NAN],
    "hold_fraction": [0, 0.2, NAN, None],
    "gate_z": [0, NAN, "2.33"],
    "keep_looks": [(), (0.2, 0.4, 0.6, 0.8), (0.9, 0.6), (0.6, 0.6), (0.0,), (1.2,), (NAN,), ("0.6",), 0.6],
    "freeze": ["never", True],
    "graft_lr": [0, -1e-3, NAN, "1e-3"],
    "peak_lr": [0, NAN, "1e-3"],
    "rewarm": [0, 1.5, NAN, "0.5"],
    "graft_weight_decay": [-1, NAN, None],
    "embargo_epochs": [-1, 0.5],
    "timeout": [0, 1.2],
    "max_batch_bytes": [0, 1.5, "1GB"],
    "patience_after_cull": [0, 0.5],
    "emergency_rollback_threshold": [-0.1, NAN],
    "exclude": ["head", [3], None],
    "colonies": ["blocks.*", [3], True],
    "min_targets": [-1, NAN, "many"],
    "axis": [{"conv": 2}, [1], 1],
    "output_fields": [{"head": 3}, ["logits"]],
    "telemetry_rows": [-1, 0.5],
    "selection": [None, 3],
    "strategy": [3, ("fixed_ramp",)],
    "objective": ["loss", None],
    "incubation_fraction": [0, 1.5, NAN],
    "trial": ["arm", None],
    "judge": ["knock_out", None],
    "max_active_seeds": [0, 2.5],
    "max_memory": [0, -1, NAN, "0.2"],
    "max_latency": [0, NAN],
    "max_train_flops": [1, 0.5, NAN, "1.3"],
    "min_confidence": [-1, 4, 0.5],
    "max_failures": [0, 1.5],
    "target_metric": ["0.9"],
    "drift_threshold": [0, NAN],
    "quarantine_epochs": [-1, 0.5],
    "spike_z": [0, NAN, None],
    "emergency_patience": [0, 2.5],
    "emergency_response": ["panic", None],
    "emergency_lr_factor": [0.0, 1.5],
    "max_emergencies": [0, 1.5],
    "boundary_steps": [0, -5, 2.5, "10"],
    "seed": [0.5, "zero", None],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name_and_value(name):
    for value in WRONG[name]:
        with pytest.raises(ConfigError, match=f"^{name} must be ") as refusal:
            GrowthConfig(**{name: value})
        assert repr(value) in str(refusal.value)


def test_every_field_has_a_wrong_value_above():
    assert {field.name for field in dataclasses.fields(GrowthConfig)} == WRONG.keys()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"layers": ["a", "b:c"]},
        {"layers": {"a": 3}},
        {"layers": ("",), "max_rounds": 0, "embargo_epochs": 0},
        {"graft_lr": 0.5, "peak_lr": 1, "boundary_steps": 10},
        {"keep_looks": [0.5], "freeze": "at_once", "compare": "steps"},
        {"max_growth": math.inf},
    ],
)
def test_what_the_specification_allows_is_accepted(values):
    config = GrowthConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


def test_a_misspelt_word_is_answered_with_the_closest_valid_one():
    assert closest("bottelneck", ["glu", "bottleneck", "affine"]) == (
        "Did you mean 'bottleneck'? Valid: affine, bottleneck, glu."
    )
    assert closest("xyz", ["glu"]) == "Valid: glu."
    assert closest("xyz", []) == "There are none."
