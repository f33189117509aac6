import pytest

from esper.runtime.judging import gates


@pytest.fixture
def all_pass(monkeypatch):
    """Whatever grows is adopted and kept: for tests of what becomes of it."""
    monkeypatch.setattr(gates.Term, "failure", lambda self, measured: None)


@pytest.fixture
def none_pass(monkeypatch):
    """Nothing beats its twin."""
    failure = gates.Term.failure
    monkeypatch.setattr(
        gates.Term, "failure", lambda self, measured: "no" if self.name == "twin_z" else failure(self, measured)
    )
