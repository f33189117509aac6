"""The whole path on a GPU: grow, refuse to the byte, resume, half precision with a gradient scaler."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from tests.tree_digest import tree_digest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EPOCHS, BATCHES = 20, 20
GROWS = esper.GrowthConfig(capacity_per_round=4, max_growth=4, compare="steps", round_fraction=0.2)


@pytest.fixture(scope="module")
def data():
    """Ten directions in sixteen dimensions: a host that squeezes them through two cannot tell them apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 16, generator=generator)
    y = (x @ torch.randn(16, 10, generator=generator)).argmax(1)
    return x.cuda(), y.cuda()


def make_host(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Linear(16, 2), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 10)
    return nn.Sequential(*layers).cuda()


def make_session(data, config, *, dropout=0.0, scaler=None, **optimizer_options):
    x, y = data
    model = esper.wrap(make_host(dropout), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **optimizer_options)

    def loss(model, batch):
        with torch.autocast("cuda", torch.float16, enabled=scaler is not None):
            return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(model):
        logits = model(x[3000:])
        return esper.Evaluation(F.cross_entropy(logits, y[3000:], reduction="none"), logits.argmax(1) == y[3000:])

    loader = esper.BatchLoader((x[:3000], y[:3000]), 3000 // BATCHES, seed=0)
    session = esper.Session(
        model,
        optimizer,
        loss=loss,
        evaluate=evaluate,
        planned_steps=EPOCHS * BATCHES,
        clip_grad_norm=1.0,
        scaler=scaler,
        loader=loader,
    )
    return model, session, loader


def train(session, loader, until=EPOCHS):
    for _ in range(session.epoch, until):
        for batch in loader:
            session.step(batch)
        session.after_epoch()


def test_a_narrow_host_grows_and_exports_on_the_gpu(data):
    model, session, loader = make_session(data, GROWS)
    train(session, loader)
    session.finish()
    assert any(report.outcome == "FOSSILIZED" for report in session.field_reports)
    torch.testing.assert_close(esper.export(model).eval()(data[0]), model.eval()(data[0]))


def test_a_run_that_refuses_everything_ends_byte_identical_to_the_bare_run(data):
    model, session, loader = make_session(data, esper.GrowthConfig(gate_z=1e9), dropout=0.2)
    train(session, loader)
    bare_model, bare, bare_loader = make_session(data, esper.GrowthConfig(max_rounds=0), dropout=0.2)
    train(bare, bare_loader)
    assert len(session.field_reports) > 0
    for (name, one), other in zip(model.named_parameters(), bare_model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_run_resumed_in_the_window_of_a_round_ends_byte_identical(data, tmp_path):
    model, session, loader = make_session(data, GROWS, dropout=0.2)
    train(session, loader, until=2)
    for batch, _ in zip(loader, range(3), strict=False):
        session.step(batch)
    session.save(tmp_path)
    expected_model, expected, expected_loader = model, session, loader
    train(expected, expected_loader)
    resumed_model, resumed, resumed_loader = make_session(data, GROWS, dropout=0.2)
    resumed.load(tmp_path)
    train(resumed, resumed_loader)
    states = [{name: t.cpu() for name, t in m.state_dict().items()} for m in (expected_model, resumed_model)]
    assert tree_digest(states[0]) == tree_digest(states[1])


@pytest.mark.parametrize("fused", [False, True])
def test_grafts_train_under_a_gradient_scaler(data, fused):
    scaler = torch.amp.GradScaler("cuda")
    model, session, loader = make_session(data, GROWS, scaler=scaler, fused=fused)
    train(session, loader)
    session.finish()
    assert any(report.outcome == "FOSSILIZED" for report in session.field_reports)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_poisoned_graft_is_culled_one_step_later_and_the_host_stays_finite(data):
    model, session, loader = make_session(data, GROWS)
    train(session, loader, until=12)
    place = next(place for place in places(model) if place.arena.live)
    with torch.no_grad():
        place.arena.slots[0] = torch.nan
    batches = iter(loader)
    session.step(next(batches))
    assert place.arena.live
    session.step(next(batches))
    assert not place.arena.live
    assert State.CULLED in {State(code) for code in place.state.lifecycle.tolist()}
    host = {n: p for n, p in model.named_parameters() if "_esper" not in n}
    assert all(torch.isfinite(parameter).all() for parameter in host.values())
