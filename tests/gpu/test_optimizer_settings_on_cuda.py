"""Rates on a GPU are noted without waiting for it, and read one step late."""

import pytest
import torch

from esper.runtime.training.optimizer_settings import Rates, SettingsNotes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def groups():
    return [{"params": [], "lr": torch.tensor(0.5, device="cuda"), "weight_decay": 0.1}, {"params": [], "lr": 0.25}]


def test_a_step_waits_for_nothing(groups):
    """The very first one excepted. Reading at a boundary does wait: the control."""
    rates, notes = Rates(), SettingsNotes()
    rates.note(groups)
    rates.of_last_step = rates.of_last_step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            groups[0]["lr"].mul_(0.5)
            rates.note(groups)
            settings = notes.take(groups)
        with pytest.raises(RuntimeError, match="synchronizing"):
            float(groups[0]["lr"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rates.of_last_step == [0.0625, 0.25]
    assert rates.in_step == [0.125, 0.25]
    assert float(settings[0]["lr"]) == 0.0625


def test_what_is_restored_is_what_the_next_step_goes_by(groups):
    """A run that is resumed goes by the rates that it would have read then."""
    rates, resumed = Rates(), Rates()
    rates.note(groups)
    resumed.of_last_step = rates.of_last_step
    groups[0]["lr"].mul_(0.5)
    for one in (rates, resumed):
        one.note(groups)
    assert rates.in_step == resumed.in_step == [0.5, 0.25]
