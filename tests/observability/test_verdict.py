"""Whether growth paid is told as the result says it, and no more than that."""

import pytest

from esper.observability.story import verdict
from tests.observability.directories import gain, lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
HOST, STATIC = row(0.30, 0.90), row(0.20, 0.94, 1290)
BETTER, WORSE, UNCLEAR = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


def _verdict(lifecycles=(FOSSIL,), grown=None, host_on=HOST, static=STATIC, **fields):
    return verdict(result(list(lifecycles), grown=grown, host_on=host_on, static=static, **fields))


@pytest.mark.parametrize(
    ("grown", "lifecycles", "says"),
    [
        (
            row(0.18, 0.95),
            [FOSSIL],
            "The network grew 1 part, and that paid: 5.0 points more accuracy than the host trained on.",
        ),
        (
            row(0.18, 0.95),
            [FOSSIL],
            "the network has 5.0 points more accuracy and 0.120 nats less test loss. Against a network",
        ),
        (
            row(0.18, 0.95),
            [FOSSIL],
            "of about this size from the start it has 1.0 points more accuracy and 0.020 nats less",
        ),
        (row(0.18, 0.95), [FOSSIL], "Trying took 25% of the training FLOPs."),
        (row(0.18, 0.95), [FOSSIL, FOSSIL, lifecycle(2)], "The network grew 2 parts, and"),
        (row(0.29, 0.90), [FOSSIL], ", and that paid: 0.010 nats less test loss than the host trained on."),
        (row(0.31, 0.89), [FOSSIL], ", but that did not pay: 1.0 points less accuracy than the host trained on."),
        (row(0.31, 0.89), [FOSSIL], "1.0 points less accuracy and 0.010 nats more test loss."),
        (row(0.30, 0.90), [FOSSIL], ", but that did not pay: it is no better than the host trained on."),
        (row(0.31, 0.91), [FOSSIL], ", but test loss and accuracy disagree about whether it paid."),
        (row(0.31, 0.88), [lifecycle(1)], "Nothing grew: no candidate proved its worth. Against the host trained on"),
        (row(0.31, 0.88), [lifecycle(1)], "at a learning rate searched for it, the network has 2.0 points less"),
        (row(0.31, 0.88), [], "No growth was tried. Against"),
        (
            row(None, 0.10),
            [lifecycle(1)],
            "Nothing grew; the loss of the network is not finite. Nothing can be compared; try a smaller --lr.",
        ),
        (row(0.31, 0.88), [lifecycle(1, outcome="CANCELLED")], "every candidate was taken back before it was judged"),
        (
            row(0.31, 0.88),
            [lifecycle(1, outcome="CANCELLED", reason="not tried: the run memorises its samples")],
            "no candidate was tried: the run memorised its samples",
        ),
        (row(0.31, 0.88), [lifecycle(1, outcome="ROLLED_BACK")], "the run went back to before what had grown"),
    ],
)
def test_the_verdict_of_a_result_without_intervals(grown, lifecycles, says):
    assert says in _verdict(lifecycles, grown)


@pytest.mark.parametrize(
    ("loss", "metric", "says"),
    [
        (BETTER, BETTER, ", and that paid: 5.0 points more accuracy than the host trained on."),
        (
            BETTER,
            BETTER,
            "5.0 points more accuracy (2.0 to 8.0 more) and 0.050 nats less test loss (0.020 to 0.080 less).",
        ),
        (WORSE, WORSE, ", but that did not pay: 5.0 points less accuracy than the host trained on."),
        (
            WORSE,
            WORSE,
            "5.0 points less accuracy (2.0 to 8.0 less) and 0.050 nats more test loss (0.020 to 0.080 more).",
        ),
        (UNCLEAR, UNCLEAR, ", but these test samples cannot tell whether that paid."),
        (
            UNCLEAR,
            UNCLEAR,
            "1.0 points more accuracy (2.0 less to 4.0 more) and 0.010 nats less test loss (0.020 more to",
        ),
        (UNCLEAR, UNCLEAR, "0.040 less): too small a difference for these test samples to tell."),
        (BETTER, UNCLEAR, ", and that paid: 0.050 nats less test loss than the host trained on."),
        (BETTER, UNCLEAR, "; the difference in accuracy is too small for these test samples to tell."),
        (UNCLEAR, BETTER, ", and that paid: 5.0 points more accuracy than the host trained on."),
        (UNCLEAR, BETTER, "; the difference in test loss is too small for these test samples to tell."),
        (WORSE, UNCLEAR, ", but that did not pay: 0.050 nats more test loss than the host trained on."),
        (BETTER, WORSE, ", but test loss and accuracy disagree about whether it paid."),
        (BETTER, (0.0, 0.0, 0.0), ", and that paid: 0.050 nats less"),
        (UNCLEAR, None, ", but these test samples cannot tell whether that paid."),
    ],
)
def test_the_verdict_goes_by_the_intervals(loss, metric, says):
    fields = {} if metric else {"metric": None}
    grown, host_on = (row(0.18, 0.95), HOST) if metric else (row(0.18, None), row(0.30, None))
    said = _verdict([FOSSIL], grown, host_on, None, gains={"host_on": gain(loss, metric), "static": None}, **fields)
    assert says in said
    assert metric or "accuracy" not in said


def test_a_refusal_within_the_interval_is_no_difference():
    gains = {"host_on": gain(UNCLEAR, UNCLEAR), "static": None}
    assert "too small a difference for these test samples to tell" in _verdict([lifecycle(1)], gains=gains)
    gains = {"host_on": gain(WORSE, WORSE), "static": None}
    assert "too small" not in _verdict([lifecycle(1)], gains=gains)


def test_intervals_that_are_not_defined_are_left_out():
    undefined = dict.fromkeys(("mean", "low", "high"))
    said = _verdict(gains={"host_on": {"loss": undefined, "metric": undefined, "units": 1}, "static": None})
    assert "5.0 points more accuracy and 0.120 nats less test loss" in said


@pytest.mark.parametrize(
    ("lifecycles", "says"),
    [
        ([FOSSIL], "The network grew 1 part; what that was worth was not measured. It was not compared with the host"),
        ([lifecycle(1)], "It was not compared with the host trained on: left out by --no-controls."),
    ],
)
def test_what_was_not_measured_is_said(lifecycles, says):
    assert says in _verdict(lifecycles, host_on=None, static=None)


def test_a_control_that_diverged_is_beaten():
    said = _verdict([FOSSIL], row(0.18, 0.95), row(None, 0.10))
    assert ", and that paid: the loss of the host trained on is not finite." in said
    assert "85.0 points more accuracy; the test loss of that control is not finite." in said
    assert "the test loss of that control is not finite" in _verdict([FOSSIL], row(0.18, 0.95), HOST, row(None, 0.10))
    assert "the test loss of that control is not finite" not in _verdict([FOSSIL], row(0.18, 0.95))


NOT_TRIED = "Both are the same network: only learning rate and schedule differ, and those of the control were searched"


@pytest.mark.parametrize(
    ("lifecycles", "probe_flops", "is_said"),
    [([], 0, True), ([lifecycle(1, outcome="CANCELLED")], 0, True), ([lifecycle(1)], 9, False), ([FOSSIL], 0, False)],
)
def test_where_nothing_was_tried_the_difference_is_not_blamed_on_growth(lifecycles, probe_flops, is_said):
    assert (NOT_TRIED in _verdict(lifecycles, row(0.4, 0.6), probe_flops=probe_flops)) == is_said


def test_a_loss_that_is_relative_to_the_variance_has_no_unit():
    said = _verdict(grown=row(0.18, 0.82), host_on=row(0.30, 0.70), metric="R2")
    assert "12.0 points more R2 and 0.120 less test loss" in said
    assert "nats" not in said
