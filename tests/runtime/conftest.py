import pytest

from esper.runtime.judging import gates


@pytest.fixture
def offsets_pass(monkeypatch):
    """Offsets are adopted too: for tests in which whatever grows is to be adopted."""
    monkeypatch.setattr(gates, "LEAST_VARIATION", 0.0)
