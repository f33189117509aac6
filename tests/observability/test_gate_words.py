"""Terms of gates are told as what they mean; other words of the log stay as they are."""

import pytest

from esper.observability.cited import Cited, Document
from esper.observability.gate_words import why_shut
from tests.observability.events import record

RUN = record(config={"growth": {"gate_z": 2.33}})
MEASURED = Document(
    "audit.jsonl#5", {"metric_gain": -0.0033333, "twin_z": 1.25, "ablation_z": -0.5, "confirm_margin": -0.01}
)
WORSE = Document("audit.jsonl#5", {"twin_z": -1.25})


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("metric_gain is -0.003333, below 0", "its accuracy was 0.3 points below its twin's."),
        ("metric_gain is missing", "its accuracy was not measured."),
        (
            "twin_z is 1.25, below 2.33",
            "its lead over its twin was not clear enough (z = +1.2; it takes at least",
        ),
        ("twin_z is missing", "it could not be compared with its twin."),
        ("ablation_z is -0.5, below 0", "it could not be shown that the run is worse without it (z = -0.5)."),
        ("ablation_z is missing", "the run without it could not be compared."),
        ("confirm_margin is -0.01, below 0", "what it is worth was not confirmed on the samples kept for that."),
        ("is_finite is 0, below 1; twin_z is missing", "its values were not finite and it could not be compared with"),
        (
            "twin_z is missing; new_term is 3, below 4",
            "it could not be compared with its twin and new_term is 3,",
        ),
        ("new_term is 3, below 4", "new_term is 3, below 4."),
        ("asked for", "asked for."),
    ],
)
def test_terms_are_told_in_plain_words(reason, says):
    assert str(why_shut(RUN, reason, [MEASURED])).startswith(says)


def test_a_metric_has_its_own_name():
    run = record({"event": "model", "metric": "R2"})
    said = str(why_shut(run, "metric_gain is -0.003333, below 0", [MEASURED]))
    assert said == "its R2 was 0.3 points below its twin's."


def test_who_is_behind_the_twin_is_no_better():
    said = str(why_shut(RUN, "twin_z is -1.25, below 2.33", [WORSE]))
    assert said == "it was no better than its twin (z = -1.2; it takes at least 2.33)."


def test_several_are_told_as_several():
    said = why_shut(RUN, "metric_gain is -0.003333, below 0", [MEASURED], of_several=True)
    assert str(said) == "their accuracy was 0.3 points below their twin's."


def test_a_number_is_cited_from_where_it_was_measured():
    (number,) = [
        part for part in why_shut(RUN, "metric_gain is -0.003333, below 0", [MEASURED]) if isinstance(part, Cited)
    ]
    assert number.sources == ("audit.jsonl#5/metric_gain",)
    assert str(why_shut(RUN, "metric_gain is -0.5, below 0", [MEASURED])) == "its accuracy was below its twin's."
