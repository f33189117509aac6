"""Until a graft is blended in, the run is bit-identical to the run without Esper."""

import pytest
import torch
from torch import nn

from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import grow, wrapped


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(8, 12), nn.Dropout(0.3), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.drop(torch.relu(self.up(x))))


def host() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2), Block(), nn.Linear(8, 4)
    )


def seeded(state: State) -> nn.Module:
    model = wrapped(host(), ["*", "", "0:4"], seeds_per_layer=3)
    if state is not State.DORMANT:
        for place in places(model):
            grow(place, "all" if place.state.num_seeds == 1 else 1, state)
    return model


def history(model: nn.Module, steps: int = 50) -> list:
    """Everything that 50 steps with dropout, batch norm and clipping leave behind, step by step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    if list(places(model)):
        SlotOptimizer(places(model), optimizer, lambda: 1e-2, weight_decay=0.1)
    torch.manual_seed(1)
    seen = []
    for _ in range(steps):
        x, target = torch.randn(16, 6, requires_grad=True), torch.randint(0, 4, (16,))
        output = model.train()(x)
        nn.functional.cross_entropy(output, target).backward()
        host_parameters = [parameter for name, parameter in model.named_parameters() if "_esper" not in name]
        seen += [output.detach(), x.grad, *(parameter.grad.clone() for parameter in host_parameters)]
        seen.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        idle = [place.arena.slots for place in places(model) if not place.is_growing]
        assert all(slots.grad is None for slots in idle)  # never zeros: optimizers would take them for gradients
        optimizer.step()
        optimizer.zero_grad()
        seen += [tensor.clone() for name, tensor in model.state_dict().items() if "_esper" not in name]
        seen += [torch.get_rng_state(), model.eval()(x.detach()).detach()]
    return seen


def differing(one: list, other: list) -> int:
    assert len(one) == len(other)
    return sum(not torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def expected() -> list:
    return history(host())


@pytest.mark.parametrize("state", [State.DORMANT, State.GERMINATED, State.TRAINING], ids=lambda state: state.name)
def test_a_seed_that_sleeps_or_waits_changes_no_bit(state, expected):
    """Outputs, gradients, what clipping returns, parameters, buffers, the global random state; in eval mode too."""
    assert differing(history(seeded(state)), expected) == 0


def test_a_graft_that_is_blended_in_is_seen(expected):
    """Negative control."""
    assert differing(history(seeded(State.GRAFTING), steps=2), expected[: len(expected) // 25]) > 0


def test_one_number_drawn_from_the_global_stream_is_seen(expected):
    """Negative control: a telemetry that drew from it would move every dropout mask after it."""
    model = seeded(State.DORMANT)
    model[0].register_forward_hook(lambda *_: torch.rand(1) and None)
    assert differing(history(model, steps=2), expected[: len(expected) // 25]) > 0


def test_seeds_that_sleep_or_wait_have_no_parameters_to_step():
    model = seeded(State.TRAINING)
    assert all(place.arena.slots.numel() == 0 for place in places(model))
