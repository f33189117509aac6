import pytest

from esper.runtime.judging import gates


def pass_all(patched: pytest.MonkeyPatch) -> None:
    """Whatever grows is adopted and kept: for tests of what becomes of it."""
    patched.setattr(gates.Term, "failure", lambda self, measured: None)


@pytest.fixture
def all_pass(monkeypatch):
    pass_all(monkeypatch)


@pytest.fixture
def none_pass(monkeypatch):
    """Nothing beats its twin."""
    failure = gates.Term.failure
    monkeypatch.setattr(
        gates.Term, "failure", lambda self, measured: "no" if self.name == "twin_z" else failure(self, measured)
    )
