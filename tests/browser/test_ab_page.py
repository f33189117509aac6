"""The page of a comparison, in a browser."""

import random

import pytest

from esper.evaluation.ab.metrics import Wishes
from esper.evaluation.ab.page import page
from esper.evaluation.ab.record import Plan
from esper.evaluation.ab.runner import ABTestRunner
from esper.evaluation.ab.subject import InProcess, UnitFailedError

NAME = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with a winner, an equivalence, something inconclusive and units that fail."""

    def measure(side):
        def measured(seed):
            if side and seed % 2:
                raise UnitFailedError("it fell & over")
            drawn = random.Random(f"{side} {seed}")
            return {
                "loss": side + 0.1 * drawn.random(),
                "accuracy": drawn.random(),
                "seconds": 1 + 1e-3 * drawn.random(),
            }

        return measured

    a, b = InProcess(NAME, measure(0)), InProcess("b", measure(1))
    plan = Plan(max_pairs=60, wishes=Wishes(margins={"seconds": "2%"}))
    path = tmp_path_factory.mktemp("ab") / "ab.html"
    path.write_text(page(ABTestRunner(a, b, plan).run()), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 375])
def test_it_tells_all_and_fits(visit, compared, width, scheme):
    watched = visit(compared, width=width, scheme=scheme)
    assert watched.strangers == []
    assert watched.complaints == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    text = watched.page.locator("main").inner_text()
    for words in (
        "A is better in loss",
        "equivalent in seconds",
        "Do not trust these verdicts",
        "it fell & over",
        NAME,
    ):
        assert words in text
    strips = watched.page.locator("svg.strip")
    assert strips.count() == 3
    assert strips.first.locator(".range").bounding_box()["width"] > 1
    assert strips.first.locator(".mark").count() >= 10


def test_before_the_first_complete_pair_it_says_so(visit, tmp_path):
    def fail(seed):
        raise UnitFailedError("never")

    plan = Plan(max_pairs=1)
    found = ABTestRunner(InProcess("a", fail), InProcess("b", lambda seed: {"loss": 0.0}), plan).run()
    (tmp_path / "ab.html").write_text(page(found), encoding="utf-8")
    watched = visit(tmp_path / "ab.html")
    assert "No pair is complete yet" in watched.page.locator("main").inner_text()
    assert watched.complaints == []
