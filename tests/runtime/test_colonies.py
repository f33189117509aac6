"""Colonies in a session: refused and resumed to the byte, contained, accumulated, exported."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import esper
from esper.checkpoint import store
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from tests.few import few
from tests.runtime import toy
from tests.runtime.test_resume import assert_equal, cut, resume, whole
from tests.runtime.toy import Recipe, Script, Trial, growing
from tests.tree_digest import tree_digest


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.dropout(torch.relu(self.norm(self.up(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(toy.FEATURES, 2), nn.Linear(2, toy.CLASSES)
        self.blocks = nn.ModuleList([Block(), Block()])
        torch.manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@dataclass(frozen=True)
class Colonist:
    """A policy that germinates one colony at the end of the second epoch."""

    layer_id: str
    trial: str = "round"

    def decide(self, observation: Observation) -> list[Command]:
        if observation.epoch != 1:
            return []
        widen = {"blueprint": "widen", "settings": {"percent": 500}, "trial": self.trial}
        return [Command(self.layer_id, "all", State.GERMINATED, **widen)]


def recipe(layer_id: str | None, trial: str = "live", *, wins: bool = True) -> Recipe:
    """One colony, or none, in a run that asks for next to nothing, or for more than there is."""
    gate_z = 1e-6 if wins else 1e6
    looks = {"keep_looks": (0.5,), "freeze": "at_once"}
    config = growing(layers=None, round_fraction=0.25, ramp_fraction=0.1, gate_z=gate_z, **looks)
    policy = Script({}) if layer_id is None else Colonist(layer_id, trial)
    found = Recipe(config, model=Residual, policy=policy, example=toy.DATA.x[:4])
    found.optimizer = lambda parameters: AdamW(parameters, lr=0.03)
    return found


def body(trial: Trial) -> str:
    """Digest of the host's bytes and the optimizer's."""
    return tree_digest([dict(esper.host_state_dict(trial.model)), trial.optimizer.state_dict()["state"]])


@pytest.mark.parametrize(
    ("layer_id", "trial"),
    few(
        [(layer_id, trial) for layer_id in ("*", "blocks.*") for trial in ("round", "live")],
        [("*", "round"), ("blocks.*", "live")],
    ),
)
def test_a_colony_that_loses_leaves_the_run_as_it_was_to_the_byte(layer_id, trial):
    """Once it has been grown and trained, in an arm or in the run itself."""
    refused, bare = recipe(layer_id, trial, wins=False).build().train(8), recipe(None).build().train(8)
    (report,) = refused.session.field_reports
    assert report.outcome == "CULLED"
    assert report.reason in ("lost_round", "lost to its twin")
    assert body(refused) == body(bare)


def test_a_colony_that_wins_does_not():
    """The control."""
    assert body(recipe("*").build().train(8)) != body(recipe(None).build().train(8))


POINTS: dict[str, Callable[[Trial], bool]] = {
    "while it is blended in": lambda trial: trial.state("*") is State.GRAFTING and trial.session.step_count == 25,
    "once it is a fossil": lambda trial: bool(trial.run.places["*"].arena.fossils),
}


@pytest.mark.parametrize(
    ("point", "accumulate"), few([(point, times) for point in POINTS for times in (1, 3)], [(next(iter(POINTS)), 3)])
)
def test_a_run_with_a_colony_resumes_to_the_byte(point, accumulate, tmp_path):
    grown = recipe("*")
    cut(grown, POINTS[point], tmp_path, accumulate=accumulate)
    expected = whole(grown, accumulate=accumulate)
    assert [report.outcome for report in expected.session.field_reports] == ["FOSSILIZED"]
    assert_equal(resume(grown, tmp_path, accumulate=accumulate), expected)


def test_a_checkpoint_that_forgot_the_statistics_of_new_channels_would_be_noticed(tmp_path):
    """The control."""
    grown = recipe("*")
    cut(grown, POINTS["while it is blended in"], tmp_path)
    state = store.read(tmp_path)
    kept = [name for name in state["body"]["model"] if "statistics" in name and "running_mean" in name]
    assert len(kept) == 2
    for name in kept:
        state["body"]["model"][name].add_(1.0)
    store.write(tmp_path, state)
    assert resume(grown, tmp_path).digest() != whole(grown).digest()


@pytest.mark.parametrize("index", [0, 2, 7])
def test_a_colony_with_a_piece_that_is_not_finite_is_taken_back_and_the_run_goes_on(index):
    trial = recipe("*").build().train_until(POINTS["while it is blended in"])
    arena = trial.run.places["*"].arena
    (graft,) = arena.live
    sizes = [graft.blueprint.num_parameters(part) for part in graft.parts]
    with torch.no_grad():
        arena.params_of(graft).split(sizes)[index][0] = math.nan
    for batch in itertools.islice(toy.batches(7), 2):
        trial.session.step(batch)
    (report,) = trial.session.field_reports
    assert report.reason == "non-finite values"
    assert arena.slots.numel() == 0
    trial.session.step(next(toy.batches(8)))
    tensors = [*esper.host_state_dict(trial.model).values(), *(p.grad for p in trial.model.parameters())]
    assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor is not None)


def test_a_run_with_a_colony_ends_as_a_plain_network_of_the_new_widths():
    trial = recipe("*").build().train()
    trial.session.finish()
    plain = esper.export(trial.model)
    assert (plain.stem.out_features, plain.blocks[0].up.in_features, plain.blocks[0].norm.num_features) == (12, 12, 12)
    torch.testing.assert_close(plain.eval()(toy.DATA.held_x), trial.model.eval()(toy.DATA.held_x))


class Sorted(Residual):
    """Mixes its channels in a way that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sort(-1).values + self.head(self.stem(x).sort(-1).values)


def test_what_is_not_offered_is_told_at_the_start():
    found = recipe(None)
    found.model = Sorted
    texts = [event["text"] for event in found.build().events("note")]
    assert "Not offered: '*', its channels cannot become more, since they go into sort." in texts
    assert not [event for event in recipe(None).build().events("note") if "Not offered" in event["text"]]
