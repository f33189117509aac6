"""Networks widened while they train: the function is kept, the optimizer is AdamW, the FLOPs are equal."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.chance import __main__ as command
from benchmarks.chance import small, tables, texts
from benchmarks.chance.training import Training, judged
from benchmarks.chance.tree import Data, Tree, lags, lead
from benchmarks.chance.tree import Path as Way
from benchmarks.chance.widening import widened
from benchmarks.measurements import RESULTS
from esper.tasks.cnn import CNNHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples

GPT = replace(texts.QUICK, context=8)
CNN = CNNHost((1, 12), 3, widths=(2, 2, 3), strides=(1, 2))
MLP = MLPHost((12, 4, 3))
GROWN = {
    "hidden of a transformer": (GPT, texts.hidden(GPT, 2.5)),
    "stream of a transformer": (GPT, texts.stream(GPT, 1.5)),
    "channels of a CNN": (CNN, replace(CNN, widths=(4, 4, 6))),
    "hidden of a perceptron": (MLP, MLPHost((12, 7, 3))),
}


@pytest.fixture(params=GROWN)
def grown(request):
    """A host that has learned a little, the recipe of a wider one, and a batch."""
    old, new = GROWN[request.param]
    torch.manual_seed(0)
    x, y = torch.randn(6, 12), torch.randint(3, (6,))
    if old is GPT:
        x, y = torch.randint(256, (2, 6, 8))
    host = Training(old())
    for _ in range(3):
        host.step(x, y, 0.01)
    return host, new, x, y


def test_a_widened_network_computes_what_it_did(grown):
    host, new, x, _ = grown
    wider, _ = widened(host.model, new, seed=1)
    host.model.eval(), wider.eval()
    torch.testing.assert_close(wider(x), host.model(x))
    with torch.no_grad():  # what is new is there, and would be heard
        for parameter in wider.parameters():
            parameter += torch.randn_like(parameter) * (parameter == 0)
    assert (wider(x) - host.model(x)).abs().max() > 0.01


def test_old_weights_go_on_as_they_would_have(grown):
    """In the first step the wider network gives them the same gradient, and the optimizer knows their past."""
    host, new, x, y = grown
    wider = host.grown(new, seed=1, ramp=5)
    _, places = widened(host.model, new, seed=1)
    born = [parameter.clone() for parameter in wider.model.parameters()]
    host.step(x, y, 0.01)
    wider.step(x, y, 0.01)
    for index, old, now in zip(places, host.model.parameters(), wider.model.parameters(), strict=True):
        torch.testing.assert_close(now[index], old, rtol=1e-3, atol=1e-4)
    moved = torch.cat([(now - was).flatten() for now, was in zip(wider.model.parameters(), born, strict=True)])
    assert moved.abs().max() > 0


@pytest.mark.parametrize("ramp", [0, 20])
def test_the_first_step_of_new_weights_is_small_with_a_ramp_only(ramp):
    host = Training(MLP())
    x, y = torch.randn(6, 12), torch.randint(3, (6,))
    host.step(x, y, 0.01)
    wider = host.grown(GROWN["hidden of a perceptron"][1], seed=1, ramp=ramp)
    before = wider.model[2].weight[:, 4:].clone()
    wider.step(x, y, 0.01)
    moved = (wider.model[2].weight[:, 4:] - before).abs().max().item()
    assert moved == pytest.approx(0.01 / 20 if ramp else 0.01, rel=0.05)


def test_a_network_that_never_grows_is_trained_by_adamw():
    torch.manual_seed(0)
    ours, theirs = Training(MLP()), MLP()
    theirs.load_state_dict(ours.model.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(20):
        x, y = torch.randn(6, 12), torch.randint(3, (6,))
        ours.step(x, y, 0.01)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    for mine, other in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_mean_weights_are_those_of_the_last_steps():
    training, seen = Training(MLP()), []
    for step in range(4):
        if step == 1:
            start = training.sums()
        training.step(torch.randn(6, 12), torch.randint(3, (6,)), 0.1)
        seen.append(training.model[0].weight.clone())
    torch.testing.assert_close(training.averaged(start, 3)[0].weight, torch.stack(seen[1:]).mean(0))


@pytest.mark.parametrize(("at", "ratio", "steps"), [(0.0, 1.0, 40), (0.1, 2.0, 18), (0.25, 1.5, 20)])
def test_arms_end_with_the_flops_of_the_host(at, ratio, steps):
    x, y = torch.randn(6, 12), torch.randint(3, (6,))
    tree = Tree("host", MLP, 0, 0.01, "cosine", 40)
    way = Way(tree, Data(lambda _: (x, y), Samples(x, y), Samples(x, y)), Training(MLP()), 40, at=at, ratio=ratio)
    way.follow([])
    assert len(way.losses) == steps


def test_a_lead_is_relative_and_paired():
    run, noise = torch.full((1000,), 2.0), torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert lead(run + noise - 0.02, run + noise)["relative"] == pytest.approx(-0.01, abs=1e-3)
    assert abs(lead(run + noise, run)["z"]) < 3
    assert lead(run + 0.1 * noise - 0.02, run)["z"] < -5


def test_a_lag_is_seen_where_it_lasts_a_quarter_of_the_window():
    run, arm = torch.ones(100), torch.ones(100)
    arm[:15] = 2.0  # early, which is forgiven
    assert lags(run, arm, 100) == pytest.approx(0.0)
    arm[40:65] = 1.03
    assert lags(run, arm, 100) == pytest.approx(0.03)


@pytest.mark.parametrize("what", command.MEASUREMENTS)
def test_the_quick_version_trains_and_keeps_nothing(what, monkeypatch, capsys):
    kept = (RESULTS / "chance" / f"{what}.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["chance", what, "--quick"])
    command.main()
    told = capsys.readouterr().out
    assert "hidden x2" in told
    assert "| host | rate | parameters |" in told
    assert (RESULTS / "chance" / f"{what}.json").read_bytes() == kept


def test_a_host_learns():
    tree = next(iter(small.measure(1, "cpu", is_quick=True)))
    assert tree["loss"] < 2.25
    assert tree["targets_per_parameter"] == pytest.approx(50 * 32 / 682, abs=0.05)


def test_rules_are_counted_by_how_the_arms_end():
    def one(targets: float, ahead: float, gain: float) -> dict:
        look = {kind: {"relative": -ahead, "z": -9.0} for kind in ("flops", "steps")}
        leads = dict.fromkeys(tables.LOOKS, look)
        arm = {"arm": "hidden x2.5", "at": 0.1, "ramp": 0, "lost": 0.0, "lag": 0.0, "leads": leads, "loss": 1.0 + gain}
        return {"host": "h", "lr": 0.1, "targets_per_parameter": targets, "parameters": 9, "loss": 1.0, "arms": [arm]}

    told = tables.rules([one(400, 0.01, -0.05), one(400, 0.001, 0.02), one(20, 0.01, 0.3), one(20, 0.0, -0.01)])
    assert "| 0.3 % ahead at equal steps, after 10 % | 2 | 1 | +0.300 | 1 | -0.010 |" in told
    assert "| 150 targets per parameter, no arm | 2 | 1 | +0.020 | 1 | -0.010 |" in told
    assert "| both | 1 | 0 |  | 1 | -0.010 |" in told


def test_runs_of_one_recipe_and_seed_are_told_apart_from_others():
    one = {"host": "h", "lr": 0.1, "steps": 9, "seed": 0, "loss": 1.0}
    assert tables.repeats([one, one | {"seed": 1, "loss": 2.0}]) == ""
    told = tables.repeats([one, one | {"loss": 1.01}, one | {"lr": 0.2, "loss": 3.0}])
    assert told == "1 hosts were trained again by the same recipe and seed: up to 0.010 (1.0 %) apart."


def test_the_page_on_growth_has_the_table_of_the_results():
    trees = json.loads((RESULTS / "chance" / "texts.json").read_text())["trees"]
    page = (Path(__file__).parents[2] / "docs" / "growth.md").read_text()
    missing = [line for line in tables.chances(trees).splitlines()[2:] if line not in page]
    assert not missing
    assert tables.repeats(trees).endswith("up to 0.006 (0.4 %) apart.")
    assert "up to 0.006 (0.4 %) apart" in page


def test_test_samples_are_judged_in_eval_mode():
    training = Training(CNN())
    judged(training.model, Samples(torch.randn(6, 12), torch.randint(3, (6,))))
    assert training.model.training
    assert training.model.stem[1].num_batches_tracked == 0


def test_kept_results_are_not_written_over(capsys):
    with pytest.raises(SystemExit):
        command.main(["texts"])
    assert "holds results already. Name another --output" in capsys.readouterr().err
