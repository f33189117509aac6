"""Tables and pictures from cells whose numbers are known."""

import itertools
import json
from xml.etree import ElementTree

import pytest

from benchmarks.growth.pictures import LINE, Point, picture
from benchmarks.growth.tables import claims_markdown, compare, details, flops_to_accuracy, markdown, overview


def _cell(metric: float, loss: float | None, flops: int = 1000, **more) -> dict:
    curve = {"flops": [flops // 4, flops // 2, flops], "val_metrics": [metric - 0.2, metric - 0.1, metric]}
    named = {"parameters": 500, "train_flops": flops, "test_metric": metric, "test_loss": loss, "val_metric": metric}
    return named | {"val_loss": loss, "seconds": 1.0, "lr": 3e-3, "schedule": "cosine", "curve": curve} | more


GROWN = {seed: _cell(0.9 + 0.01 * seed, 0.3, kept=seed > 0, probe_flops=250) for seed in range(3)}


def test_differences_are_paired_by_seed():
    table = compare(GROWN, {"grown": GROWN, "static": {2: _cell(0.9, 0.4), 0: _cell(0.95, 0.2), 7: _cell(0.1, 9.0)}})
    row = table["static"]
    assert row["seeds"] == 2
    assert row["points_gained"][0] == pytest.approx(100 * ((0.92 - 0.9) + (0.9 - 0.95)) / 2)
    assert (row["seeds_won_on_accuracy"], row["seeds_won_on_loss"]) == (1, 1)
    assert row["losses_won_among_grown"] == [1, 1]
    assert table["grown"]["kept"] == 2
    assert table["grown"]["share_of_arms_and_judging"][0] == 0.25
    assert set(row["by_seed"]) == {0, 2}


def test_a_row_that_lost_or_diverged_stays():
    table = compare(GROWN, {"grown": GROWN, "static": {0: _cell(0.1, None)}})
    assert table["static"]["seeds_won_on_loss"] == 1
    assert "| static" in markdown("task", table)


def test_a_row_with_fewer_seeds_says_so_and_the_first_row_is_not_compared_with_itself():
    text = markdown("task", compare(GROWN, {"grown": GROWN, "static": {0: _cell(0.9, 0.4)}}))
    assert "**task**, 3 paired seeds" in text
    assert "| static, 1 seeds | 500 | 1.00 | 90.0 [90.0, 90.0] | 0.400 [0.400, 0.400] | +0.0" in text
    assert next(line for line in text.splitlines() if line.startswith("| grown (grew 2 of 3)")).endswith("|  |  |  |")


def test_flops_to_accuracy_are_those_of_the_first_point_that_is_as_good():
    row = _cell(0.8, 0.4, flops=2000)  # the grown runs end at 0.9 or more: 0.8 comes after half of their 1000
    found = flops_to_accuracy([(GROWN[0], row), (GROWN[0], row), (GROWN[0], _cell(0.99, 0.1))])
    assert found == {"grown": pytest.approx(500 / 2000), "itself": 1.0}
    assert flops_to_accuracy([(GROWN[0], _cell(0.99, 0.1))])["grown"] is None
    assert "not reached" in details(compare(GROWN, {"grown": GROWN, "static": {0: _cell(0.99, 0.1)}}))


def test_the_overview_compares_both_grown_runs_with_the_controls_seed_by_seed():
    better = {seed: cell | {"test_metric": cell["test_metric"] + 0.01} for seed, cell in GROWN.items()}
    table = compare(GROWN, {"grown": GROWN, "grown_default": better, "host_on": GROWN, "static": {0: _cell(0.9, 9.0)}})
    _, _, searched, shipped = overview({"a": table}).splitlines()
    assert "| a | searched | " in searched
    assert "| +0.0 [+0.0, +0.0] | 0, 0 of 3 | " in searched
    assert "| a | as shipped | " in shipped
    assert "| +1.0 [+1.0, +1.0] | 3, 0 of 3 | " in shipped
    assert shipped.endswith("1, 1 of 1 |")
    stored = json.loads(json.dumps({"a": table}))
    assert overview(stored) == overview({"a": table})


def test_the_overview_tells_of_controls_that_are_missing():
    table = compare(GROWN, {"grown": GROWN})
    assert overview({"a": table}).splitlines()[2].endswith("| not computed |  | not computed |  |")


def test_claims_that_do_not_hold_are_told():
    claim = {"task": "a", "grown": "grown", "against": "static", "seeds": 10, "won": 2, "p": 0.8, "p_holm": 1.0}
    points = claim | {"measure": "accuracy", "margin": 0.5, "gain": (-1.0, -2.0, 0.0), "holds": False}
    nats = claim | {"measure": "loss", "margin": None, "gain": (0.1, 0.05, 0.2), "holds": True}
    text = claims_markdown([points, nats])
    no_worse = "| a | grown at most 0.5 points below static | points | 10 | -1.00 [-2.00, +0.00] | 2 | 0.8 | 1 | no |"
    assert no_worse in text
    assert "| a | grown better than static | nats | 10 | +0.100 [+0.050, +0.200] | 2 | 0.8 | 1 | yes |" in text


def test_a_picture_shows_every_row_and_no_label_hides_another():
    rows = [Point(f"row<{index}>", 1.0 + index % 2, 90 + index / 100, 89, 91) for index in range(20)]
    root = ElementTree.fromstring(picture("a & b", "FLOPs", rows))
    labels = [node for node in root.iter() if (node.text or "").startswith("row<")]
    heights = sorted(float(node.get("y")) for node in labels)
    assert len(labels) == 20
    assert all(upper - lower >= LINE - 0.11 for lower, upper in itertools.pairwise(heights))
    assert heights[-1] <= 420


def test_rows_of_one_value_can_be_drawn():
    assert "same" in picture("t", "parameters", [Point("same", 5.0, 90.0, 90.0, 90.0)])
