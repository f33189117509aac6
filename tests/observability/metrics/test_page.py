"""The page of metrics is made from the catalogue."""

from benchmarks.watching import overhead
from esper.observability.metrics.catalogue import METRICS
from scripts import metrics_page


def test_the_page_is_what_the_catalogue_and_the_record_say():
    text = metrics_page.PAGE.read_text()
    assert metrics_page.page() == text
    assert [name for name in METRICS if text.count(f"| `{name}` |") != 1] == []


def test_being_watched_costs_a_step_little():
    """A short version of ``python -m benchmarks.watching overhead``; its bounds are those of a busy machine."""
    counted = overhead.counting()
    assert counted["step_us"] < 10
    assert counted["vitals_ms"] < 5
    assert overhead.compared(epochs=2, seconds=0.0)["step"] < 0.5


def test_scripts_are_where_the_makefile_looks():
    assert (metrics_page.ROOT / "Makefile").read_text().count("scripts.metrics_page") == 1
