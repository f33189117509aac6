import subprocess
import sys

import pytest

CONTRACTS = ("commands", "config", "errors", "lifecycle", "reports")


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_load_without_torch_and_numpy(name):
    loaded = _loaded_after(f"import esper.contracts.{name}")
    assert f"esper.contracts.{name}" in loaded
    assert loaded.isdisjoint({"torch", "numpy"})


def test_the_public_words_of_contracts_load_without_torch():
    loaded = _loaded_after("import esper; esper.GrowthConfig, esper.State, esper.Command, esper.ConfigError")
    assert "torch" not in loaded


def test_the_room_above_loads_torch():
    """Negative control: the test above can see it."""
    assert "torch" in _loaded_after("import esper; esper.wrap")
