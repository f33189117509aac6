"""What seeds sensed survives packing to two digits, and states survive exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.observability import lattice as lattice_module
from esper.observability.lattice import ABSENT, MEASURES, MISSING, ZERO, encode, lattice
from tests.observability.events import record
from tests.observability.unpacking import decode, unpack

KEYS = tuple(MEASURES)


def line(step: int, **places):
    return {"event": "telemetry", "epoch": step // 10, "step": step, "places": places}


def model(**seeds: int):
    places = [{"layer_id": name, "kind": "layer", "covers": [name], "seeds": count} for name, count in seeds.items()]
    return {"event": "model", "step": 0, "places": places}


class TestCode:
    @given(st.floats(1e-39, 1e38))
    def test_a_value_keeps_two_digits(self, value):
        assert decode(encode(np.array([value])))[0] == pytest.approx(value, rel=0.0501)

    @given(st.integers(10, 99), st.integers(-39, 38))
    def test_a_value_of_two_digits_is_kept_as_it_is(self, digits, exponent):
        value = float(f"{digits / 10}e{exponent}")
        assert decode(encode(np.array([value])))[0] == pytest.approx(value, rel=1e-12)

    @given(st.lists(st.floats(1e-39, 1e38), min_size=2))
    def test_larger_values_have_no_smaller_codes(self, values):
        codes = encode(np.array(sorted(values)))
        assert (np.diff(codes.astype(int)) >= 0).all()

    def test_the_layout_is_the_documented_one(self):
        assert encode(np.array([1.0, 1.1, 9.9, 10.0, 0.0123])).tolist() == [3601, 3602, 3690, 3691, 3423]

    def test_rounding_up_carries(self):
        assert encode(np.array([9.96, 0.0999])).tolist() == encode(np.array([10.0, 0.1])).tolist()

    def test_zero_and_missing_have_codes_of_their_own(self):
        values = np.array([0.0, 1e-60, np.nan, np.inf, -1.0])
        assert encode(values).tolist() == [ZERO, ZERO, MISSING, MISSING, MISSING]
        assert np.isnan(decode(encode(values))).tolist() == [False, False, True, True, True]


class TestPacking:
    def test_places_and_boundaries_come_back(self):
        lines = [
            line(10, a={KEYS[0]: [1.0, 2.0], "awake": {"1": 3}}, b={KEYS[0]: [0.5], KEYS[2]: [7.0]}),
            line(20, a={KEYS[0]: [1.5, None]}, b={KEYS[0]: [0.0], KEYS[2]: [70.0], "awake": {"0": 6}}),
        ]
        packed = lattice(record(model(a=2, b=1), telemetry=lines))
        values, states = unpack(packed)
        assert [measure["key"] for measure in packed["measures"]] == [KEYS[0], KEYS[2]]
        assert [(place["layer_id"], place["seeds"], place["first"]) for place in packed["places"]] == [
            ("a", 2, 0),
            ("b", 1, 2),
        ]
        assert np.allclose(values[0], [[1.0, 2.0, 0.5], [1.5, np.nan, 0.0]], equal_nan=True)
        assert np.allclose(values[1], [[np.nan, np.nan, 7.0], [np.nan, np.nan, 70.0]], equal_nan=True)
        assert states.tolist() == [[0, 3, 0], [0, 0, 6]]
        assert (packed["steps"], packed["epochs"]) == ([10, 20], [1, 2])

    @given(st.integers(0, 2**32 - 1))
    def test_any_values_and_states_come_back(self, seed):
        generator = np.random.default_rng(seed)
        boundaries, seeds = generator.integers(1, 6), generator.integers(1, 9)
        values = np.exp(generator.normal(0, 9, (len(KEYS), boundaries, seeds)))
        values[generator.random(values.shape) < 0.1] = np.nan
        values[generator.random(values.shape) < 0.1] = 0.0
        values[:, 0, 0] = 1.0  # so that every measure was measured somewhere
        states = generator.integers(0, 11, (boundaries, seeds))
        lines = []
        for at in range(boundaries):
            columns = {
                key: [None if np.isnan(v) else v for v in row[at]] for key, row in zip(KEYS, values, strict=True)
            }
            awake = {str(index): int(code) for index, code in enumerate(states[at]) if code}
            lines.append(line(10 * at, a={**columns, "awake": awake}))
        back, back_states = unpack(lattice(record(telemetry=lines)))
        assert np.allclose(back, values, rtol=0.0501, atol=0, equal_nan=True)
        assert (back_states == states).all()

    def test_a_place_that_comes_late_is_absent_before(self):
        lines = [line(10, a={KEYS[0]: [1.0]}), line(20, a={KEYS[0]: [1.0]}, late={KEYS[0]: [2.0]})]
        packed = lattice(record(model(a=1), telemetry=lines))
        values, states = unpack(packed)
        assert [place["kind"] for place in packed["places"]] == ["layer", None]
        assert np.isnan(values[0, 0, 1])
        assert states.tolist() == [[0, ABSENT], [0, 0]]

    def test_a_place_with_another_number_of_seeds_has_an_entry_for_each(self):
        lines = [line(10, a={KEYS[0]: [1.0]}), line(20, a={KEYS[0]: [3.0, 4.0]})]
        packed = lattice(record(model(a=1), telemetry=lines))
        assert [(place["label"], place["seeds"]) for place in packed["places"]] == [
            ("a (1 seed)", 1),
            ("a (2 seeds)", 2),
        ]
        values, states = unpack(packed)
        assert np.allclose(values[0], [[1.0, np.nan, np.nan], [np.nan, 3.0, 4.0]], equal_nan=True)
        assert states.tolist() == [[0, ABSENT, ABSENT], [ABSENT, 0, 0]]

    def test_without_columns_the_number_of_seeds_is_what_the_log_tells(self):
        chunked = {"event": "rechunked", "step": 15, "layer_id": "a", "num_seeds": 3}
        lines = [line(10, a={"awake": {"0": 1}}), line(20, a={"awake": {"2": 1}})]
        packed = lattice(record(model(a=1), chunked, telemetry=lines))
        assert packed["measures"] == []
        assert unpack(packed)[1].tolist() == [[1, ABSENT, ABSENT, ABSENT], [ABSENT, 0, 0, 1]]

    def test_a_boundary_at_which_nothing_was_sensed_has_its_column(self):
        epochs = [{"event": "epoch", "epoch": number, "step": 10 * number} for number in (1, 2, 3)]
        told = record(model(a=2, b=1), epochs=epochs, telemetry=[line(20, a={KEYS[0]: [1.0, 2.0]})])
        packed = lattice(told)
        values, states = unpack(packed)
        assert (packed["steps"], packed["epochs"]) == ([10, 20, 30], [1, 2, 3])
        assert [place["layer_id"] for place in packed["places"]] == ["a", "b"]
        assert np.isnan(values[0]).tolist() == [[True] * 3, [False, False, True], [True] * 3]
        assert states.tolist() == [[0, 0, 0]] * 3
        told.faults.append("metrics.jsonl line 4 is damaged and was left out: what it told is missing here.")
        assert unpack(lattice(told))[1].tolist() == [[ABSENT] * 3, [0, 0, 0], [ABSENT] * 3]

    def test_without_telemetry_there_is_none(self):
        assert lattice(record(model(a=1))) is None
        assert lattice(record(model(a=0), telemetry=[line(10, a={})])) is None

    def test_an_absurd_number_of_seeds_is_damage(self):
        assert lattice(record(model(a=10**15), telemetry=[line(10, a={"awake": {"0": 1}})])) is None


class TestSize:
    @pytest.fixture
    def telemetry(self):
        generator = np.random.default_rng(0)
        return [line(10 * at, a={key: np.exp(generator.normal(0, 1, 40)).tolist() for key in KEYS}) for at in range(16)]

    def test_correlation_is_the_first_to_be_left_out(self, telemetry, monkeypatch):
        whole = lattice(record(telemetry=telemetry))
        assert whole["left_out"] == []
        monkeypatch.setattr(lattice_module, "LARGEST", len(whole["packs"][0]["codes"]) - 1)
        smaller = lattice(record(telemetry=telemetry))
        assert (smaller["left_out"], smaller["every"]) == (["correlation"], 1)
        assert np.array_equal(unpack(smaller)[0], unpack(whole)[0][:3])

    def test_then_every_other_boundary(self, telemetry, monkeypatch):
        whole = lattice(record(telemetry=telemetry))
        monkeypatch.setattr(lattice_module, "LARGEST", len(whole["packs"][0]["codes"]) // 3)
        smaller = lattice(record(telemetry=telemetry))
        every = smaller["every"]
        assert every > 1
        assert len(smaller["packs"][0]["codes"]) <= len(whole["packs"][0]["codes"]) // 3
        assert smaller["steps"] == whole["steps"][::every]
        values, states = unpack(smaller)
        assert np.array_equal(values, unpack(whole)[0][:3, ::every])
        assert states.shape == (len(smaller["steps"]), 40)
