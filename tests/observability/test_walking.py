"""The checks that look up numbers of pages are strict."""

import pytest

from tests.observability.walking import check_counted, shows


@pytest.mark.parametrize(
    ("text", "value", "spec"),
    [
        ("+3.0", 0.0302, "points"),
        ("+0.0", -0.0001, "points"),
        ("3.0", -0.0302, "points_apart"),
        ("-0.100", -0.1, "nats"),
        ("0.1588", 0.15875, "loss"),
        ("95.0%", 0.9496, "percent"),
        ("147.8 M", 147_831_744, "flops"),
        ("1 min 20 s", 80.4, "seconds"),
        ("3.5 s", 3.52, "seconds"),
        ("1,292", 1292, "number"),
        ("1970-01-02", 90_000, "date"),
    ],
)
def test_a_number_in_its_way_of_writing_is_shown(text, value, spec):
    assert shows(text, value, spec)


@pytest.mark.parametrize(
    ("text", "value", "spec"),
    [
        ("+0.0", 0.0302, "points"),
        ("3.0", -0.0302, "points"),
        ("-3.0", 0.0302, "points"),
        ("3.0", 0.0302, "number"),
        ("0.0", 0.0302, "points_apart"),
        ("+3.0", 0.0302, "points_apart"),
        ("0.100", -0.1, "nats"),
        ("0.100", -0.1, "loss"),
        ("0.9", 0.9, "percent"),
        ("95.0%", 0.95, "loss"),
        ("147.8", 147.8, "flops"),
        ("3.5", 3.5, "seconds"),
    ],
)
def test_another_is_not(text, value, spec):
    assert not shows(text, value, spec)


@pytest.mark.parametrize(
    ("sources", "values"),
    [
        (["a#1/passed", "a#2/passed"], [True, False]),
        (["a#1/step", "a#1/step"], [3, 3]),
        (["a#1/outcome", "a#2/outcome"], ["FOSSILIZED", "CULLED"]),
    ],
)
def test_what_is_counted_must_be_there(sources, values):
    with pytest.raises(AssertionError):
        check_counted(sources, values)
    check_counted(sources[:1], values[:1])
